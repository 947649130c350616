// What a speculator proposes after a sequence's committed tokens: a tree of tokens, each with the
// chance that it is accepted. Node i follows node parents[i] < i, or the last committed token
// (parents[i] = -1); the children of a node are different tokens. So any first n nodes are a tree,
// and a chain is parents[i] = i - 1. Arrays of nodes, reserved once: a round allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/trace_record.h"

namespace foretoken {

struct DraftTree {
  std::vector<TokenId> tokens;
  std::vector<std::int32_t> parents;
  std::vector<float> confidences;     // P(accepted | everything before it was)
  std::vector<SpeculatorKind> kinds;  // who proposed it
  std::vector<float> raw;             // the speculator's own confidence, before calibration
  // --spec-sampling rejection only: the sparse distribution that a node was drawn from, with noise
  // of its own: entries [support_ends[i - 1], support_ends[i]) of support. Empty: a point mass, the
  // token did not depend on the request's noise. One a node, or none at all.
  std::vector<std::pair<TokenId, float>> support;
  std::vector<std::size_t> support_ends;

  DraftTree() { reserve(kMaxDraft); }
  int size() const { return int(tokens.size()); }
  bool empty() const { return tokens.empty(); }
  void clear() {
    truncate(0);
    support.clear();
    support_ends.clear();
  }
  // As a child of the last node: a chain grows.
  void push(TokenId token, float confidence, SpeculatorKind kind, float raw_confidence) {
    push_after(size() - 1, token, confidence, kind, raw_confidence);
  }
  void push_after(int parent, TokenId token, float confidence, SpeculatorKind kind,
                  float raw_confidence) {
    tokens.push_back(token);
    parents.push_back(parent);
    confidences.push_back(confidence);
    kinds.push_back(kind);
    raw.push_back(raw_confidence);
  }
  // The distribution of the node pushed last is what was added to `support` since the one before.
  void end_support() { support_ends.push_back(support.size()); }
  std::span<const std::pair<TokenId, float>> support_of(int node) const {
    const auto i = std::size_t(node);
    if (i >= support_ends.size()) return {};
    const std::size_t begin = i == 0 ? 0 : support_ends[i - 1];
    return std::span(support).subspan(begin, support_ends[i] - begin);
  }
  void reserve(std::size_t n) {
    of_nodes([n](auto& values) { values.reserve(n); });
  }
  void truncate(std::size_t n) {
    if (n >= tokens.size()) return;
    of_nodes([n](auto& values) { values.resize(n); });
    if (support_ends.size() > n) {
      support_ends.resize(n);
      support.resize(n == 0 ? 0 : support_ends.back());
    }
  }

  bool is_chain() const { return foretoken::is_chain(parents); }
  int depth(int node) const {  // nodes before it on its path
    int depth = 0;
    while ((node = parents[std::size_t(node)]) >= 0) ++depth;
    return depth;
  }
  // The children of a node (-1: of the root), first to last; -1: no more.
  int first_child(int node) const { return next_of(node, node); }
  int next_sibling(int node) const { return next_of(parents[std::size_t(node)], node); }
  int child(int node, TokenId token) const {
    int at = first_child(node);
    while (at >= 0 && tokens[std::size_t(at)] != token) at = next_sibling(at);
    return at;
  }

 private:
  void of_nodes(const auto& fn) { fn(tokens), fn(parents), fn(confidences), fn(kinds), fn(raw); }
  int next_of(int parent, int after) const {
    for (int i = after + 1; i < size(); ++i)
      if (parents[std::size_t(i)] == parent) return i;
    return -1;
  }
};

}  // namespace foretoken
