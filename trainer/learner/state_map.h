// A learner's state as bytes: named arrays, in the order of their names. Not a wire format: the
// checkpoint that holds it is hashed, and private to one trainer. Reading is bounds-checked all the
// same.
#pragma once

#include <cstring>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken::trainer {

class StateMap {
 public:
  template <class T>
  void put(const std::string& name, std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<std::byte>& bytes = arrays_[name];
    bytes.resize(values.size_bytes());
    if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  }
  template <class T>
  void put(const std::string& name, const std::vector<T>& values) {
    put(name, std::span<const T>(values));
  }
  template <class T>
  void put_one(const std::string& name, T value) {
    put(name, std::span<const T>(&value, 1));
  }

  bool has(const std::string& name) const { return arrays_.contains(name); }
  // Empty where there is no such array or its size is not a multiple of T's.
  template <class T>
  std::vector<T> get(const std::string& name) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end() || found->second.size() % sizeof(T) != 0) return {};
    std::vector<T> values(found->second.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), found->second.data(), found->second.size());
    return values;
  }
  template <class T>
  T get_one(const std::string& name, T otherwise) const {
    const auto values = get<T>(name);
    return values.size() == 1 ? values[0] : otherwise;
  }

  std::vector<std::byte> serialize() const;
  static Result<StateMap> parse(std::span<const std::byte> bytes);  // kInvalidInput

 private:
  std::map<std::string, std::vector<std::byte>> arrays_;
};

}  // namespace foretoken::trainer
