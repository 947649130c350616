// The model architectures: one file each beside this one and one row in registry.cpp. A row says
// how the architecture is called and how its layers are read from a file's metadata
// (config_reader.h); the tensors follow from the layers (blocks/).
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace foretoken {

class ConfigReader;

struct Architecture {
  const char* name;                // general.architecture, and the prefix of its keys
  const char* transformers_class;  // what Hugging Face calls it: "LlamaForCausalLM"
  // Fills in ModelConfig::layers and ropes; what all architectures share is read already.
  void (*read)(ConfigReader& reader);
};

std::span<const Architecture* const> architectures();
const Architecture* find_architecture(std::string_view name);  // null: unknown
std::string architecture_names();                              // "llama, qwen2", for messages

}  // namespace foretoken
