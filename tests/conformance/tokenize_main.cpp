// The C++ side of the tokenizer oracle: reads NUL-terminated texts on stdin, prints one line of
// token ids each, or "error: MESSAGE". tokenizer_oracle.py compares them with the published
// tokenizers'.
//   tokenize_text GGUF [--special]
#include <fmt/format.h>

#include <iostream>
#include <iterator>
#include <string>

#include "runtime/model/gguf.h"
#include "runtime/text/tokenizer.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: tokenize_text GGUF [--special] < NUL-terminated texts\n";
    return 2;
  }
  const bool special = argc > 2 && std::string_view(argv[2]) == "--special";
  auto file = foretoken::GgufFile::open(argv[1]);
  if (!file) {
    std::cerr << file.error().message << "\n";
    return 1;
  }
  auto tokenizer = foretoken::Tokenizer::from_gguf(**file);
  if (!tokenizer) {
    std::cerr << tokenizer.error().message << "\n";
    return 1;
  }
  std::string text;
  while (std::getline(std::cin, text, '\0')) {
    const auto ids = (*tokenizer)->encode(text, special);
    if (ids)
      fmt::print("{}\n", fmt::join(*ids, " "));
    else
      fmt::print("error: {}\n", ids.error().message);
  }
  return 0;
}
