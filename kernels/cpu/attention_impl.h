// Attention of one unit, written once over a vector type V (lanes, dot product) and compiled once
// an ISA. Every sum of a row has an order fixed by absolute positions: a logit is a chain of FMAs
// over channels; a segment's mass is summed per lane over positions, then by a fixed tree; its
// output is a chain over positions; INT2 parts are exact integer sums. None of it knows how many
// rows share the unit (law 1).
//
// INT2, per row: logit = q . mean + s_t * step * (q8 . c), c = digits - 1.5, as
//   s_t * (step / 2) * (2 q8 . digits - 3 sum q8);
// output: weights w_t = p_t s_t as 15-bit integers W_t = 256 high + low (low in -128..127) relative
// to the segment's largest, o2 = step_w / 2 * (2 W . digits - 3 sum W). Fifteen bits because in
// eight a sharp row would round the mass of its many small weights to zero.
#pragma once

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/kv_page_layout.h"

#define FORETOKEN_UNROLL _Pragma("GCC unroll 16")

namespace foretoken::kernels {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr int kMaxWeight = 127 * 256 + 127;

template <class V>
struct Attention {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int W = V::kLanes;

  // exp(x), x <= 0, to 2 ulp: 2^n times a degree-6 polynomial on |r| <= ln(2)/2 (Taylor with the
  // last two coefficients adjusted is not worth its constants here). Exactly 0 below -87.
  static F exp_nonpositive(F x) {
    const F clamped = V::max(x, V::set(-87.5f));
    const F n = V::round(V::mul(clamped, V::set(1.44269504f)));
    F r = V::fma(n, V::set(-0.693359375f), clamped);
    r = V::fma(n, V::set(2.12194440e-4f), r);
    F p = V::set(1.0f / 720);
    p = V::fma(p, r, V::set(1.0f / 120));
    p = V::fma(p, r, V::set(1.0f / 24));
    p = V::fma(p, r, V::set(1.0f / 6));
    p = V::fma(p, r, V::set(0.5f));
    p = V::fma(p, r, V::set(1.0f));
    p = V::fma(p, r, V::set(1.0f));
    return V::zero_below(x, -87.0f, V::scale_by_power(p, n));
  }
  static float exp_one(float x) {
    float lanes[16];
    V::store(lanes, exp_nonpositive(V::set(x)));
    return lanes[0];
  }

  // y [R, d] += x [R, d] m [d, d]; each output a chain of FMAs over the inner index. Rows share the
  // matrix's loads, and R x C chains hide the latency.
  template <int R, int C>
  static void times_columns(const float* x, const float* m, int d, float* y) {
    F sum[R][C];
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = V::load(y + r * d + c * W);
    }
    for (int j = 0; j < d; ++j, m += d) {
      F column[C];
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) column[c] = V::load(m + c * W);
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
        const F a = V::set(x[r * d + j]);
        FORETOKEN_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = V::fma(a, column[c], sum[r][c]);
      }
    }
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) V::store(y + r * d + c * W, sum[r][c]);
    }
  }
  template <int R>
  static void times_matrix(const float* x, const float* m, int d, float* y) {
    constexpr int C = V::kTile;
    int i = 0;
    for (; i + C * W <= d; i += C * W) times_columns<R, C>(x, m + i, d, y + i);
    for (; i < d; i += W) times_columns<R, 1>(x, m + i, d, y + i);
  }

  static void prepare(const AttentionUnit& unit, const AttentionQueries& queries) {
    const AttentionCall& call = *unit.call;
    const int d = call.head_dim, rows = unit.rows();
    for (int i = 0; i < rows; ++i) {
      const int head = unit.kv_head * unit.group + i % unit.group;
      const float* q = unit.sequence->q + (unit.first_row + i / unit.group) * call.q_stride +
                       static_cast<std::size_t>(head) * d;
      float* plain = queries.plain + static_cast<std::size_t>(i) * d;
      for (int c = 0; c < d; c += W) {
        V::store(plain + c, V::mul(V::load(q + c), V::set(call.scale)));
      }
    }
    if (!unit.reads_any_int2()) return;
    in_row_blocks(rows, [&]<int R>(int first) {
      float y[R * kMaxHeadDim];
      for (int c = 0; c < R * d; c += W) V::store(y + c, V::set(0.0f));
      times_matrix<R>(queries.plain + static_cast<std::size_t>(first) * d,
                      call.transforms[unit.kv_head].k_query, d, y);
      for (int r = 0; r < R; ++r) quantise_query(y + r * d, d, queries, first + r);
    });
  }

  static void quantise_query(const float* y, int d, const AttentionQueries& queries, int row) {
    F largest = V::set(0.0f);
    for (int c = 0; c < d; c += W) largest = V::max(largest, V::abs(V::load(y + c)));
    const float most = V::largest(largest);
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    std::int32_t sum = 0;
    std::int8_t* digits = queries.digits + static_cast<std::size_t>(row) * d;
    for (int c = 0; c < d; c += W) {
      std::int32_t lanes[16];
      V::store_int(lanes, V::round_to_int(V::mul(V::load(y + c), V::set(inverse))));
      for (int l = 0; l < W; ++l) {
        const std::int32_t x = lanes[l] > 127 ? 127 : lanes[l] < -127 ? -127 : lanes[l];
        digits[c + l] = static_cast<std::int8_t>(x);
        sum += x;
      }
    }
    queries.step[row] = most * (1.0f / 127.0f);
    queries.sum[row] = sum;
  }

  // Logits of R rows against `n_groups` x W tokens of one 16-bit page.
  template <int R, int T>
  static void hot_logits(const std::byte* page, int d, int token, const float* q, float* logits) {
    F sum[R][T];
    const std::byte* k[T];
    FORETOKEN_UNROLL for (int t = 0; t < T; ++t) {
      k[t] = page + hot_k_offset(d, token + t * W, 0);
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) sum[r][t] = V::set(0.0f);
    }
    for (int c = 0; c < d; c += 2) {
      F even[T], odd[T];
      FORETOKEN_UNROLL for (int t = 0; t < T; ++t) {
        const I pair = V::load_int(k[t] + c * 32);
        even[t] = V::bf16_low(pair);
        odd[t] = V::bf16_high(pair);
      }
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
        const F a = V::set(q[r * d + c]);
        FORETOKEN_UNROLL for (int t = 0; t < T; ++t) sum[r][t] = V::fma(a, even[t], sum[r][t]);
        const F b = V::set(q[r * d + c + 1]);
        FORETOKEN_UNROLL for (int t = 0; t < T; ++t) sum[r][t] = V::fma(b, odd[t], sum[r][t]);
      }
    }
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      FORETOKEN_UNROLL for (int t = 0; t < T; ++t)
          V::store(logits + r * kLogitStride + t * W, sum[r][t]);
    }
  }
  template <int R>
  static void hot_logits_page(const std::byte* page, int d, int n_tokens, const float* q,
                              float* logits) {
    int token = 0;
    constexpr int T = V::kTile;
    for (; token < n_tokens; token += T * W) hot_logits<R, T>(page, d, token, q, logits + token);
  }

  // The same from packed codes. mean_dot [R]: q . mean; scale [R]: step / 2; sum3 [R]: 3 sum q8.
  template <int R, int T>
  static void int2_logits(const std::byte* page, int d, int token, const std::int8_t* q,
                          const float* mean_dot, const float* half_step, const std::int32_t* sum3,
                          float* logits) {
    I sum[R][T];
    const std::byte* k[T];
    FORETOKEN_UNROLL for (int t = 0; t < T; ++t) {
      const int at = token + t * W;
      k[t] = page + static_cast<std::size_t>(at / 16) * (d * 4) + (at % 16) * 4;
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) sum[r][t] = V::set_int(0);
    }
    for (int g = 0; g < d; g += 16) {
      I z[T];
      FORETOKEN_UNROLL for (int t = 0; t < T; ++t) z[t] = V::load_int(k[t] + g * 4);
      FORETOKEN_UNROLL for (int j = 0; j < 4; ++j) {
        I codes[T];
        FORETOKEN_UNROLL for (int t = 0; t < T; ++t) {
          codes[t] = V::and3(z[t]);
          z[t] = V::shift_right2(z[t]);
        }
        FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
          const I a = V::broadcast4(q + r * d + g + 4 * j);
          FORETOKEN_UNROLL for (int t = 0; t < T; ++t) sum[r][t] = V::dot(sum[r][t], codes[t], a);
        }
      }
    }
    const std::byte* scales = page + sealed_k_scales(d) + token * 2;
    FORETOKEN_UNROLL for (int t = 0; t < T; ++t) {
      const F s = V::load_half(scales + t * W * 2);
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
        const F x = V::to_float(V::sub(V::twice(sum[r][t]), V::set_int(sum3[r])));
        V::store(logits + r * kLogitStride + t * W,
                 V::fma(V::mul(s, V::set(half_step[r])), x, V::set(mean_dot[r])));
      }
    }
  }
  template <int R>
  static void int2_logits_page(const std::byte* page, int d, const float* plain,
                               const std::int8_t* q, const float* step, const std::int32_t* sum,
                               float* logits) {
    float mean_dot[R], half_step[R];
    std::int32_t sum3[R];
    F dot[R];
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) dot[r] = V::set(0.0f);
    for (int c = 0; c < d; c += W) {
      const F mean = V::load_bf16(page + sealed_k_mean(d) + c * 2);
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) dot[r] =
          V::fma(V::load(plain + r * d + c), mean, dot[r]);
    }
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      mean_dot[r] = V::sum(dot[r]);
      half_step[r] = step[r] * 0.5f;
      sum3[r] = 3 * sum[r];
    }
    constexpr int T = V::kTile;
    for (int token = 0; token < kPageTokens; token += T * W) {
      int2_logits<R, T>(page, d, token, q, mean_dot, half_step, sum3, logits + token);
    }
  }

  // o [R, d] += p [R, tokens] v, channels c .. c + C W of one 16-bit page.
  template <int R, int C>
  static void hot_values(const std::byte* v, int d, int n_tokens, const float* p, float* o) {
    F sum[R][C];
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = V::load(o + r * d + c * W);
    }
    for (int t = 0; t < n_tokens; ++t, v += d * 2) {
      F x[C];
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) x[c] = V::load_bf16(v + c * W * 2);
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
        const F a = V::set(p[r * kLogitStride + t]);
        FORETOKEN_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = V::fma(a, x[c], sum[r][c]);
      }
    }
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) V::store(o + r * d + c * W, sum[r][c]);
    }
  }
  template <int R>
  static void hot_values_page(const std::byte* page, int d, int n_tokens, const float* p,
                              float* o) {
    const std::byte* v = page + hot_v_offset(d, 0);
    constexpr int C = V::kTile;
    int c = 0;
    for (; c + C * W <= d; c += C * W) hot_values<R, C>(v + c * 2, d, n_tokens, p, o + c);
    for (; c < d; c += W) hot_values<R, 1>(v + c * 2, d, n_tokens, p, o + c);
  }

  // o2 [R, W digits] of all INT2 pages of a segment, exact integers until the last line.
  template <int R>
  static void int2_values(const std::byte* const* pages, const int* page_of, int n_pages, int d,
                          int digit, const std::int8_t* high, const std::int8_t* low,
                          const float* half_step, const std::int32_t* sum3, float* o2) {
    I sum_high[R], sum_low[R];
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) sum_high[r] = sum_low[r] = V::set_int(0);
    for (int n = 0; n < n_pages; ++n) {
      const std::byte* v = pages[n] + sealed_v_codes(d) +
                           static_cast<std::size_t>(digit / 16) * 64 + (digit % 16) * 4;
      const std::int8_t* h = high + page_of[n] * kPageTokens;
      const std::int8_t* l = low + page_of[n] * kPageTokens;
      for (int block = 0; block < 4; ++block, v += d * 4, h += 16, l += 16) {
        I z = V::load_int(v);
        FORETOKEN_UNROLL for (int j = 0; j < 4; ++j) {
          const I codes = V::and3(z);
          z = V::shift_right2(z);
          FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
            sum_high[r] = V::dot(sum_high[r], codes, V::broadcast4(h + r * kSegmentTokens + 4 * j));
            sum_low[r] = V::dot(sum_low[r], codes, V::broadcast4(l + r * kSegmentTokens + 4 * j));
          }
        }
      }
    }
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      const I total = V::add_int(V::shift_left8(sum_high[r]), sum_low[r]);
      const F x = V::to_float(V::sub(V::twice(total), V::set_int(sum3[r])));
      V::store(o2 + r * d, V::mul(x, V::set(half_step[r])));
    }
  }

  // Calls fn.template operator()<R>(first) over [0, n) in blocks of at most kRowTile rows, evenly
  // sized.
  template <class Fn>
  static void in_row_blocks(int n, Fn fn) {
    const int n_blocks = (n + V::kRowTile - 1) / V::kRowTile;
    for (int b = 0, first = 0; b < n_blocks; ++b) {
      const int size = (n - first + (n_blocks - b) - 1) / (n_blocks - b);
      switch (size) {
        case 1:
          fn.template operator()<1>(first);
          break;
        case 2:
          fn.template operator()<2>(first);
          break;
        case 3:
          fn.template operator()<3>(first);
          break;
        case 4:
          fn.template operator()<4>(first);
          break;
        case 5:
          fn.template operator()<5>(first);
          break;
        default:
          fn.template operator()<6>(first);
          break;
      }
      first += size;
    }
  }

  static void segment(const AttentionUnit& unit, const AttentionQueries& queries, int segment,
                      const AttentionBuffers& buffers, const AttentionState& out) {
    const AttentionCall& call = *unit.call;
    const int d = call.head_dim, rows = unit.rows();
    const std::int64_t first = static_cast<std::int64_t>(segment) * kSegmentTokens;
    const std::int64_t past_last = unit.last_position() + 1 - first;
    const int n_tokens = past_last < kSegmentTokens ? static_cast<int>(past_last) : kSegmentTokens;
    const int n_pages = (n_tokens + kPageTokens - 1) / kPageTokens;
    const std::size_t hot_at = call.hot_offset + unit.kv_head * call.hot_stride;
    const std::size_t sealed_at = call.sealed_offset + unit.kv_head * call.sealed_stride;

    // Logits.
    const std::byte* hot[kSegmentPages];
    const std::byte* sealed[kSegmentPages];
    int sealed_page[kSegmentPages];
    bool is_int2[kSegmentPages];
    int n_sealed = 0;
    for (int n = 0; n < n_pages; ++n) {
      const std::int64_t page = first / kPageTokens + n;
      float* logits = buffers.logits + n * kPageTokens;
      is_int2[n] = unit.reads_int2(page);
      if (is_int2[n]) {
        const std::byte* at = unit.sequence->sealed[page] + sealed_at;
        sealed_page[n_sealed] = n;
        sealed[n_sealed++] = at;
        in_row_blocks(rows, [&]<int R>(int r) {
          int2_logits_page<R>(at, d, queries.plain + static_cast<std::size_t>(r) * d,
                              queries.digits + static_cast<std::size_t>(r) * d, queries.step + r,
                              queries.sum + r, logits + static_cast<std::size_t>(r) * kLogitStride);
        });
      } else {
        hot[n] = unit.sequence->hot[page] + hot_at;
        const int tokens =
            n_tokens - n * kPageTokens < kPageTokens ? n_tokens - n * kPageTokens : kPageTokens;
        in_row_blocks(rows, [&]<int R>(int r) {
          hot_logits_page<R>(hot[n], d, tokens, queries.plain + static_cast<std::size_t>(r) * d,
                             logits + static_cast<std::size_t>(r) * kLogitStride);
        });
      }
    }

    // Softmax within the segment. What a row does not see is set to -inf, not multiplied.
    const int padded = n_pages * kPageTokens;
    float half_step[kMaxRowsOnStack];
    std::int32_t sum3[kMaxRowsOnStack];
    for (int r = 0; r < rows; ++r) {
      float* logits = buffers.logits + static_cast<std::size_t>(r) * kLogitStride;
      const std::int64_t visible64 =
          unit.sequence->first_position + unit.first_row + r / unit.group + 1 - first;
      const int visible = visible64 < kSegmentTokens ? static_cast<int>(visible64) : kSegmentTokens;
      for (int t = visible; t < padded; ++t) logits[t] = kMinusInfinity;
      F most = V::set(kMinusInfinity);
      for (int t = 0; t < padded; t += W) most = V::max(most, V::load(logits + t));
      const float maximum = V::largest(most);
      F mass = V::set(0.0f), int2_mass = V::set(0.0f);
      float largest_weight = 0;
      for (int n = 0; n < n_pages; ++n) {
        float* at = logits + n * kPageTokens;
        if (!is_int2[n]) {
          for (int t = 0; t < kPageTokens; t += W) {
            const F p = exp_nonpositive(V::subtract(V::load(at + t), V::set(maximum)));
            mass = V::add(mass, p);
            V::store(at + t, p);
          }
        } else {
          const std::byte* scales =
              unit.sequence->sealed[first / kPageTokens + n] + sealed_at + sealed_v_scales(d);
          F most_weight = V::set(0.0f);
          for (int t = 0; t < kPageTokens; t += W) {
            const F p = exp_nonpositive(V::subtract(V::load(at + t), V::set(maximum)));
            int2_mass = V::add(int2_mass, p);
            const F w = V::mul(p, V::load_half(scales + t * 2));
            most_weight = V::max(most_weight, w);
            V::store(at + t, w);
          }
          const float page_most = V::largest(most_weight);
          largest_weight = page_most > largest_weight ? page_most : largest_weight;
        }
      }
      out.maximum[r] = maximum;
      out.int2_mass[r] = V::sum(int2_mass);
      out.mass[r] = V::sum(mass) + out.int2_mass[r];
      // Weights of INT2 tokens as integers. A subnormal largest weight would overflow its inverse:
      // then all of them count as zero (below 1e-33 of the row's output).
      const float inverse = largest_weight > 1e-33f ? kMaxWeight / largest_weight : 0.0f;
      std::int32_t sum = 0;
      for (int s = 0; s < n_sealed; ++s) {
        const float* w = logits + sealed_page[s] * kPageTokens;
        std::int8_t* high =
            buffers.weights_high + r * kSegmentTokens + sealed_page[s] * kPageTokens;
        std::int8_t* low = buffers.weights_low + r * kSegmentTokens + sealed_page[s] * kPageTokens;
        sum += V::split_weights(w, inverse, kMaxWeight, high, low);
      }
      half_step[r] = largest_weight * (0.5f / kMaxWeight);
      sum3[r] = 3 * sum;
    }

    // Values.
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < d; c += W)
        V::store(out.o + static_cast<std::size_t>(r) * d + c, V::set(0.0f));
    }
    for (int n = 0; n < n_pages; ++n) {
      if (is_int2[n]) continue;
      const int tokens =
          n_tokens - n * kPageTokens < kPageTokens ? n_tokens - n * kPageTokens : kPageTokens;
      in_row_blocks(rows, [&]<int R>(int r) {
        hot_values_page<R>(
            hot[n], d, tokens,
            buffers.logits + static_cast<std::size_t>(r) * kLogitStride + n * kPageTokens,
            out.o + static_cast<std::size_t>(r) * d);
      });
    }
    if (n_sealed > 0) {
      in_row_blocks(rows, [&]<int R>(int r) {
        for (int digit = 0; digit < d; digit += W) {
          int2_values<R>(sealed, sealed_page, n_sealed, d, digit,
                         buffers.weights_high + r * kSegmentTokens,
                         buffers.weights_low + r * kSegmentTokens, half_step + r, sum3 + r,
                         out.o2 + static_cast<std::size_t>(r) * d + digit);
        }
      });
    } else {
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < d; c += W)
          V::store(out.o2 + static_cast<std::size_t>(r) * d + c, V::set(0.0f));
      }
    }
  }

  static void merge(const AttentionUnit& unit, const AttentionState& into,
                    const AttentionState& from) {
    const int d = unit.call->head_dim;
    for (int r = 0; r < unit.rows(); ++r) {
      const float maximum = into.maximum[r] > from.maximum[r] ? into.maximum[r] : from.maximum[r];
      const float a = exp_one(into.maximum[r] - maximum), b = exp_one(from.maximum[r] - maximum);
      into.maximum[r] = maximum;
      into.mass[r] = into.mass[r] * a + from.mass[r] * b;
      into.int2_mass[r] = into.int2_mass[r] * a + from.int2_mass[r] * b;
      const auto scale = [&](float* x, const float* y) {
        for (int c = 0; c < d; c += W)
          V::store(x + c, V::fma(V::load(y + c), V::set(b), V::mul(V::load(x + c), V::set(a))));
      };
      scale(into.o + static_cast<std::size_t>(r) * d, from.o + static_cast<std::size_t>(r) * d);
      scale(into.o2 + static_cast<std::size_t>(r) * d, from.o2 + static_cast<std::size_t>(r) * d);
    }
  }

  static void finish(const AttentionUnit& unit, const AttentionState& state) {
    const AttentionCall& call = *unit.call;
    const int d = call.head_dim;
    if (unit.reads_any_int2()) {
      const KvTransform& transform = call.transforms[unit.kv_head];
      for (int r = 0; r < unit.rows(); ++r) {
        float* o = state.o + static_cast<std::size_t>(r) * d;
        const F mass = V::set(state.int2_mass[r]);
        for (int c = 0; c < d; c += W) {
          V::store(o + c, V::fma(V::load(transform.v_mean + c), mass, V::load(o + c)));
        }
      }
      in_row_blocks(unit.rows(), [&]<int R>(int r) {
        times_matrix<R>(state.o2 + static_cast<std::size_t>(r) * d, transform.v_decode, d,
                        state.o + static_cast<std::size_t>(r) * d);
      });
    }
    for (int r = 0; r < unit.rows(); ++r) {
      const float* o = state.o + static_cast<std::size_t>(r) * d;
      const int head = unit.kv_head * unit.group + r % unit.group;
      float* out = unit.sequence->out + (unit.first_row + r / unit.group) * call.out_stride +
                   static_cast<std::size_t>(head) * d;
      const F inverse = V::set(1.0f / state.mass[r]);
      for (int c = 0; c < d; c += W) V::store(out + c, V::mul(V::load(o + c), inverse));
    }
  }

  // A group of more than kUnitRows query heads is refused by attention().
  static constexpr int kMaxRowsOnStack = kUnitRows;
  static constexpr AttentionKernels table() { return {prepare, segment, merge, finish}; }
};

}  // namespace
}  // namespace foretoken::kernels
