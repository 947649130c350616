// write_golden_models DIR: the models of tests/support/golden_models.h as DIR/NAME.gguf, for
// model_golden.py.
#include <cstdio>

#include "tests/support/golden_models.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s DIR\n", argv[0]);
    return 2;
  }
  for (const auto& model : foretoken::testing::golden_models()) {
    foretoken::testing::write_tiny_model(std::string(argv[1]) + "/" + model.name + ".gguf",
                                         model.options);
  }
  return 0;
}
