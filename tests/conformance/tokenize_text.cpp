// The C++ side of the tokenizer oracle. Reads texts on stdin, each as its length in bytes on a line
// and then the bytes; prints a line for each: the token ids, "|", and the decoded ids in hex; or
// "error: MESSAGE". tokenizer_oracle.py compares them with the published tokenizers'.
//   tokenize_text GGUF [--special]
#include <fmt/format.h>

#include <iostream>
#include <string>

#include "runtime/files/gguf.h"
#include "runtime/text/tokenizer.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: tokenize_text GGUF [--special] < texts\n";
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
  for (std::string length; std::getline(std::cin, length);) {
    std::string text(std::stoul(length), '\0');
    if (!std::cin.read(text.data(), static_cast<std::streamsize>(text.size()))) return 2;
    const auto ids = (*tokenizer)->encode(text, special);
    if (!ids) {
      fmt::print("error: {}\n", ids.error().message);
      continue;
    }
    std::string hex;
    for (const char c : (*tokenizer)->decode(*ids, special))
      hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
    fmt::print("{}|{}\n", fmt::join(*ids, " "), hex);
  }
  return 0;
}
