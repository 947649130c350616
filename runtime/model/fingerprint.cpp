#include "runtime/model/fingerprint.h"

#include <sodium.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <vector>

namespace foretoken {

Result<ModelFingerprint> fingerprint_of(const GgufFile& file, int drop_last_layers,
                                        kernels::ThreadPool& pool) {
  if (sodium_init() < 0) return Error{ErrorCode::kInternal, "libsodium did not initialise"};
  std::vector<XXH128_hash_t> digests(file.tensors().size());
  pool.tasks(int(digests.size()), [&](int i, int) {
    const GgufTensor& t = file.tensors()[std::size_t(i)];
    digests[std::size_t(i)] = XXH3_128bits(t.data.data(), t.data.size());
  });
  crypto_generichash_state state;
  crypto_generichash_init(&state, nullptr, 0, 32);
  auto add = [&](const void* data, std::size_t n) {
    const std::uint64_t length = n;
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(&length),
                              sizeof length);
    crypto_generichash_update(&state, static_cast<const unsigned char*>(data), n);
  };
  for (const std::string& key : file.keys()) {
    if (key.starts_with("general.") && key != "general.architecture")
      continue;  // names and URLs change no token
    const std::string value = file.describe(key);
    add(key.data(), key.size());
    add(value.data(), value.size());
  }
  for (std::size_t i = 0; i < digests.size(); ++i) {
    const GgufTensor& t = file.tensors()[i];
    add(t.name.data(), t.name.size());
    add(&t.ggml_type, sizeof t.ggml_type);
    add(t.shape.data(), t.shape.size() * sizeof t.shape[0]);
    add(&digests[i], sizeof digests[i]);
  }
  add(&drop_last_layers, sizeof drop_last_layers);
  ModelFingerprint out;
  crypto_generichash_final(&state, out.data(), out.size());
  return out;
}

}  // namespace foretoken
