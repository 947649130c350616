// Attention of one unit, written once over a vector type V (lanes, dot product) and compiled once
// an ISA. Every sum of a row has an order fixed by absolute positions: a logit is a chain of FMAs
// over channels; a segment's mass is summed per lane over positions, then by a fixed tree; its
// output is a chain over positions; sums over codes are exact integers (at 8 bits, of the high and
// the low half of the weights). None of it knows how many rows share the unit (law 1).
//
// Sealed pages, per row, with n = 2^bits - 1 and c = digits - n / 2 (kv_format.h):
//   K by row      logit = q . mean + z_t * sum q' + s_t * step * (Q . c), the last term as
//                 s_t * (step / 2) * (2 Q . digits - n sum Q); Q is the query as integers of 7 or
//                 (256 high + low, wide_query) 15 bits
//   K by channel  the page's scales are multiplied into the query, which is then rounded to Q for
//                 this page (or group of its tokens), and q . z takes the place of q . mean
//   V             weights w_t = p_t s_t as 15-bit integers W_t = 256 high + low (low in -128..127)
//                 relative to the segment's largest, o2 = step_w / 2 * (2 W . digits - n sum W)
//                 + sum p_t z_t. Fifteen bits because in eight a sharp row would round the mass of
//                 its many small weights to zero.
// What a format does not have costs nothing: the kernels are compiled once a format.
#pragma once

#include <utility>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/layout/kv_page_layout.h"

#define FORETOKEN_UNROLL _Pragma("GCC unroll 16")

namespace foretoken::kernels {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr int kMaxWeight = 127 * 256 + 127;

// What does not depend on the mode.
template <class V>
struct AttentionCommon {
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
    const I power = V::template shift_left<23>(V::add_int(V::round_to_int(n), V::set_int(127)));
    return V::zero_below(x, -87.0f, V::mul(p, V::bits_to_float(power)));
  }
  static float exp_one(float x) {
    float lanes[16];
    V::store(lanes, exp_nonpositive(V::set(x)));
    return lanes[0];
  }

  // y [R, n_out] += x [R, n_in] m [n_in, n_out]; each output a chain of FMAs over the inner index.
  // Rows share the matrix's loads, and R x C chains hide the latency.
  template <int R, int C>
  static void times_columns(const float* x, const float* m, int n_in, int n_out, float* y) {
    F sum[R][C];
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = V::load(y + r * n_out + c * W);
    }
    for (int j = 0; j < n_in; ++j, m += n_out) {
      F column[C];
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) column[c] = V::load(m + c * W);
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
        const F a = V::set(x[r * n_in + j]);
        FORETOKEN_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = V::fma(a, column[c], sum[r][c]);
      }
    }
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      FORETOKEN_UNROLL for (int c = 0; c < C; ++c) V::store(y + r * n_out + c * W, sum[r][c]);
    }
  }
  template <int R>
  static void times_matrix(const float* x, const float* m, int n_in, int n_out, float* y) {
    constexpr int C = V::kTile;
    int i = 0;
    for (; i + C * W <= n_out; i += C * W) times_columns<R, C>(x, m + i, n_in, n_out, y + i);
    for (; i < n_out; i += W) times_columns<R, 1>(x, m + i, n_in, n_out, y + i);
  }

  // A query as int8 (kWide: as 256 digits + low) of one step; n a multiple of 16.
  template <bool kWide>
  static void quantise_query(const float* y, int n, std::int8_t* digits, std::int8_t* low,
                             float* step, std::int32_t* sum) {
    F largest = V::set(0.0f);
    for (int c = 0; c < n; c += W) largest = V::max(largest, V::abs(V::load(y + c)));
    const float most = V::largest(largest);
    if constexpr (kWide) {
      *sum = split_words(y, n, inverse_of(most), kMaxWeight, digits, low);
      *step = most * (1.0f / kMaxWeight);
    } else {
      const F inverse = V::set(most > 0 ? 127.0f / most : 0.0f);
      I total = V::set_int(0);
      for (int c = 0; c < n; c += W) {
        const I x = V::round_to_int(V::mul(V::load(y + c), inverse));  // at most 127, rounded
        V::store_bytes(digits + c, x);
        total = V::add_int(total, x);
      }
      *step = most * (1.0f / 127.0f);
      *sum = V::sum_int(total);
    }
  }
  // Of words of kMaxWeight. A subnormal largest value would overflow its inverse: then all of them
  // count as zero (below 1e-33 of a row's output).
  static float inverse_of(float largest) { return largest > 1e-33f ? kMaxWeight / largest : 0.0f; }

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
        even[t] = V::bits_to_float(V::template shift_left<16>(pair));
        odd[t] = V::bits_to_float(V::bit_and(pair, V::set_int(static_cast<int>(0xffff0000u))));
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

  // Calls fn.template operator()<R>(first) over [0, n) in blocks of at most kMost rows, evenly
  // sized.
  template <int kMost = V::kRowTile, class Fn>
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
};

// The kernels of one mode.
template <class V, int kFormatIndex>
struct Attention : AttentionCommon<V> {
  using Common = AttentionCommon<V>;
  using F = typename V::F;
  using I = typename V::I;
  using Common::exp_nonpositive;
  using Common::exp_one;
  using Common::in_row_blocks;
  using Common::inverse_of;
  static constexpr int W = V::kLanes;
  static constexpr KvFormat kFormat = kKvFormats[kFormatIndex];
  static constexpr int kBits = kFormat.bits;
  static constexpr int kCodes = kBits > 0 ? codes_per_lane(kBits) : 16;
  static constexpr std::int32_t kOffset = (1 << kBits) - 1;  // twice the centre of the codes
  static constexpr bool kByChannel = kFormat.k_group > 0, kGrouped = kFormat.v_group > 0,
                        kWide = kFormat.wide_query;
  // Vectors of tokens in a tile of logits: half as many where each has two sums, or as a group of
  // tokens has.
  static constexpr int tokens_tile() {
    const int tile = kWide && V::kTile > 1 ? V::kTile / 2 : V::kTile;
    return kByChannel && tile * W > kFormat.k_group ? kFormat.k_group / W : tile;
  }

  // Sums of 2-bit codes by V's tiles: of the mode that has one scale a row and a narrow query.
  static constexpr bool kBySums =
      V::kTileSums && kBits == 2 && !kByChannel && !kWide && !kGrouped && !kFormat.affine;
  static constexpr int kCodeRows = kWide ? V::kRowTile : V::kCodeRowTile;
  // Whether 16-bit pages are multiplied by V's tiles.
  static bool hot_by_tiles(int d) { return V::kTileSums && d % 64 == 0; }

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
    if constexpr (V::kTileSums) {
      if (hot_by_tiles(d))
        V::split_bf16(queries.plain, rows * d, queries.bf16_high, queries.bf16_low);
    }
    if constexpr (kBits > 0 && !kByChannel) {
      if (!unit.reads_any_sealed()) return;
      const int n = k_digits(kFormat, d);
      const float* matrix = call.transforms[unit.kv_head].k_query;
      in_row_blocks(rows, [&]<int R>(int first) {
        float transformed[R * kMaxDigits];
        const float* y = queries.plain + static_cast<std::size_t>(first) * d;
        if (matrix != nullptr) {
          for (int c = 0; c < R * n; c += W) V::store(transformed + c, V::set(0.0f));
          Common::template times_matrix<R>(y, matrix, d, n, transformed);
          y = transformed;
        }
        for (int r = 0; r < R; ++r) {
          const int row = first + r;
          const std::size_t at = static_cast<std::size_t>(row) * n;
          Common::template quantise_query<kWide>(y + r * n, n, queries.digits + at,
                                                 queries.low + at, queries.step + row,
                                                 queries.sum + row);
          if constexpr (kFormat.affine) {
            F total = V::set(0.0f);
            for (int c = 0; c < n; c += W) total = V::add(total, V::load(y + r * n + c));
            queries.total[row] = V::sum(total);
          }
        }
      });
    }
  }

  // 2 sum (c q) - kOffset sum q, from the sums over the high and low halves of q.
  static F centred(I high, I low, std::int32_t q_sum) {
    if constexpr (kBits < 8) {
      // At most 512 * 2^15 * 15, twice: within 31 bits.
      const I total = V::add_int(V::template shift_left<8>(high), low);
      return V::to_float(V::sub(twice(total), V::set_int(kOffset * q_sum)));
    } else {
      // Either half is below 2^24, exact as a float; their sum is not.
      const F total = V::fma(V::to_float(high), V::set(256.0f), V::to_float(low));
      return V::fma(total, V::set(2.0f),
                    V::set(-static_cast<float>(kOffset) * static_cast<float>(q_sum)));
    }
  }

  // Logits of R rows against T x W tokens of a sealed page. q, low [R, n_digits]; base [R]: q .
  // mean, or the sum of q' (affine by row), or q . z (by channel); half_step [R]: step / 2; q_sum
  // [R].
  template <int R, int T>
  static void sealed_logits(const std::byte* page, const SealedLayout& at, int token,
                            const std::int8_t* q, const std::int8_t* low, const float* base,
                            const float* half_step, const std::int32_t* q_sum, float* logits) {
    const int n = at.k_digits;
    I sum[R][T], sum_low[kWide ? R : 1][kWide ? T : 1];
    const std::byte* k[T];
    FORETOKEN_UNROLL for (int t = 0; t < T; ++t) {
      const int from = token + t * W;
      k[t] = page + static_cast<std::size_t>(from / 16) * (n * 2 * kBits) + (from % 16) * 4;
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
        sum[r][t] = V::set_int(0);
        if constexpr (kWide) sum_low[r][t] = V::set_int(0);
      }
    }
    for (int g = 0; g < n; g += kCodes) {
      I z[T];
      FORETOKEN_UNROLL for (int t = 0; t < T; ++t) z[t] = V::load_int(k[t] + g * 2 * kBits);
      FORETOKEN_UNROLL for (int j = 0; j < kCodes / 4; ++j) {
        I codes[T];
        FORETOKEN_UNROLL for (int t = 0; t < T; ++t) {
          codes[t] = low_bits<kBits>(z[t]);
          z[t] = V::template shift_words_right<kBits>(z[t]);
        }
        FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
          const I a = broadcast4(q + r * n + g + 4 * j);
          FORETOKEN_UNROLL for (int t = 0; t < T; ++t) sum[r][t] =
              add_products<kBits>(sum[r][t], codes[t], a);
          if constexpr (kWide) {
            const I b = broadcast4(low + r * n + g + 4 * j);
            FORETOKEN_UNROLL for (int t = 0; t < T; ++t) sum_low[r][t] =
                add_products<kBits>(sum_low[r][t], codes[t], b);
          }
        }
      }
    }
    FORETOKEN_UNROLL for (int t = 0; t < T; ++t) {
      F s, z;
      if constexpr (!kByChannel) s = V::load_half(page + at.k_scales + (token + t * W) * 2);
      if constexpr (!kByChannel && kFormat.affine)
        z = V::load_half(page + at.k_centres + (token + t * W) * 2);
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
        F x;
        if constexpr (kWide)
          x = centred(sum[r][t], sum_low[r][t], q_sum[r]);
        else
          x = V::to_float(V::sub(twice(sum[r][t]), V::set_int(kOffset * q_sum[r])));
        F step = V::set(half_step[r]), more = V::set(base[r]);
        if constexpr (!kByChannel) step = V::mul(s, step);
        if constexpr (!kByChannel && kFormat.affine) more = V::mul(z, more);
        V::store(logits + r * kLogitStride + t * W, V::fma(step, x, more));
      }
    }
  }
  // K by row: rows `first`.. of the unit.
  template <int R>
  static void logits_by_row(const std::byte* page, const SealedLayout& at, int d,
                            const AttentionQueries& queries, int first, float* logits) {
    float base[R], half_step[R];
    if constexpr (kFormat.affine) {
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) base[r] = queries.total[first + r];
    } else {
      const float* plain = queries.plain + static_cast<std::size_t>(first) * d;
      F dot[R];
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) dot[r] = V::set(0.0f);
      for (int c = 0; c < d; c += W) {
        const F mean = V::load_bf16(page + at.k_mean + c * 2);
        FORETOKEN_UNROLL for (int r = 0; r < R; ++r) dot[r] =
            V::fma(V::load(plain + r * d + c), mean, dot[r]);
      }
      FORETOKEN_UNROLL for (int r = 0; r < R; ++r) base[r] = V::sum(dot[r]);
    }
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) half_step[r] = queries.step[first + r] * 0.5f;
    constexpr int T = tokens_tile();
    const std::size_t skip = static_cast<std::size_t>(first) * at.k_digits;
    for (int token = 0; token < kPageTokens; token += T * W) {
      sealed_logits<R, T>(page, at, token, queries.digits + skip, queries.low + skip, base,
                          half_step, queries.sum + first, logits + token);
    }
  }
  // K by channel: the query in the page's own units, for each group of tokens.
  template <int R>
  static void logits_by_channel(const std::byte* page, const SealedLayout& at, int d,
                                const AttentionQueries& queries, int first, float* logits) {
    constexpr int kGroup = kByChannel ? kFormat.k_group : kPageTokens;
    constexpr int T = tokens_tile();
    const float* plain = queries.plain + static_cast<std::size_t>(first) * d;
    std::int8_t q[R * kMaxDigits], low[R * kMaxDigits];
    float base[R], half_step[R];
    std::int32_t q_sum[R];
    for (int group = 0; group < at.k_groups; ++group) {
      const std::byte *scales = page + at.k_scales + static_cast<std::size_t>(group) * d * 2,
                      *centres = page + at.k_centres + static_cast<std::size_t>(group) * d * 2;
      for (int r = 0; r < R; ++r) {
        float y[kMaxDigits];
        F dot = V::set(0.0f);
        for (int c = 0; c < d; c += W) {
          const F x = V::load(plain + r * d + c);
          dot = V::fma(x, V::load_half(centres + c * 2), dot);
          V::store(y + c, V::mul(x, V::load_half(scales + c * 2)));
        }
        for (int i = d; i < at.k_digits; ++i) {
          y[i] = static_cast<float>(1 << kBits) *
                 y[static_cast<std::uint8_t>(page[at.boosted + i - d])];
        }
        base[r] = V::sum(dot);
        Common::template quantise_query<kWide>(y, at.k_digits, q + r * at.k_digits,
                                               low + r * at.k_digits, half_step + r, q_sum + r);
        half_step[r] *= 0.5f;
      }
      for (int token = group * kGroup; token < (group + 1) * kGroup; token += T * W)
        sealed_logits<R, T>(page, at, token, q, low, base, half_step, q_sum, logits + token);
    }
  }

  // o2 [R, W digits] of all sealed pages of a segment, exact integers until the last lines.
  template <int R>
  static void sealed_values(const std::byte* const* pages, const int* page_of, int n_pages,
                            const SealedLayout& at, int digit, const std::int8_t* high,
                            const std::int8_t* low, const float* half_step,
                            const std::int32_t* weight_sum, float* o2) {
    const int n = at.v_digits;
    I sum_high[R], sum_low[R];
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) sum_high[r] = sum_low[r] = V::set_int(0);
    for (int p = 0; p < n_pages; ++p) {
      const std::byte* v =
          pages[p] + at.v_codes + static_cast<std::size_t>(digit / 16) * 64 + (digit % 16) * 4;
      const std::int8_t* h = high + page_of[p] * kPageTokens;
      const std::int8_t* l = low + page_of[p] * kPageTokens;
      for (int block = 0; block < kPageTokens / kCodes;
           ++block, v += n * 4, h += kCodes, l += kCodes) {
        I z = V::load_int(v);
        FORETOKEN_UNROLL for (int j = 0; j < kCodes / 4; ++j) {
          const I codes = low_bits<kBits>(z);
          z = V::template shift_words_right<kBits>(z);
          FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
            sum_high[r] =
                add_products<kBits>(sum_high[r], codes, broadcast4(h + r * kSegmentTokens + 4 * j));
            sum_low[r] =
                add_products<kBits>(sum_low[r], codes, broadcast4(l + r * kSegmentTokens + 4 * j));
          }
        }
      }
    }
    FORETOKEN_UNROLL for (int r = 0; r < R; ++r) {
      const F x = centred(sum_high[r], sum_low[r], weight_sum[r]);
      V::store(o2 + r * n, V::mul(x, V::set(half_step[r])));
    }
  }

  // Pages lie anywhere: the hardware's prefetcher starts anew at each. While one page's logits are
  // worked on, the next one's K comes; V of a segment's pages comes during its softmax, some lines
  // a row. A core has no more than 16 lines on their way: a whole page at once would hold it up.
  static void prefetch_k(const AttentionUnit& unit, std::int64_t page, const SealedLayout& at) {
    if (page > unit.last_position() / kPageTokens || !unit.reads_sealed(page)) return;
    const AttentionCall& call = *unit.call;
    const std::byte* from =
        unit.sequence->sealed[page] + call.sealed_offset + unit.kv_head * call.sealed_stride;
    for (std::size_t i = 0; i < at.v_codes; i += 64) __builtin_prefetch(from + i, 0, 2);
    for (std::size_t i = at.k_scales; i < at.bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
  }
  static void prefetch_v(const std::byte* page, const SealedLayout& at, int row, int rows) {
    const int n_lines = static_cast<int>((at.k_scales - at.v_codes) / 64);
    for (int line = n_lines * row / rows; line < n_lines * (row + 1) / rows; ++line)
      __builtin_prefetch(page + at.v_codes + 64 * line, 0, 2);
  }

  // The same as logits_by_row and sealed_values, their integer sums from V's tiles.
  static void logits_by_sums(const std::byte* page, const SealedLayout& at, int d, int rows,
                             const AttentionQueries& queries, float* logits) {
    alignas(64) std::int32_t sums[kUnitRows][kPageTokens];
    V::logit_sums(page, at.k_digits, queries.digits, rows, sums[0]);
    for (int r = 0; r < rows; ++r) {
      F dot = V::set(0.0f);
      for (int c = 0; c < d; c += W)
        dot = V::fma(V::load(queries.plain + static_cast<std::size_t>(r) * d + c),
                     V::load_bf16(page + at.k_mean + c * 2), dot);
      const F base = V::set(V::sum(dot)), half_step = V::set(queries.step[r] * 0.5f);
      const I q_sum = V::set_int(kOffset * queries.sum[r]);
      FORETOKEN_UNROLL for (int t = 0; t < kPageTokens; t += W) {
        const F x = V::to_float(V::sub(twice(V::load_int(sums[r] + t)), q_sum));
        const F s = V::load_half(page + at.k_scales + t * 2);
        V::store(logits + static_cast<std::size_t>(r) * kLogitStride + t,
                 V::fma(V::mul(s, half_step), x, base));
      }
    }
  }
  static void values_by_sums(const std::byte* const* pages, const int* page_of, int n_pages,
                             const SealedLayout& at, int rows, const AttentionBuffers& buffers,
                             const float* half_step, const std::int32_t* weight_sum, float* o2) {
    alignas(64) std::int32_t high[kUnitRows][W], low[kUnitRows][W];
    const int n = at.v_digits;
    for (int digit = 0; digit < n; digit += W) {
      V::value_sums(pages, page_of, n_pages, at, digit, buffers.weights_high, buffers.weights_low,
                    rows, high[0], low[0]);
      for (int r = 0; r < rows; ++r) {
        const F x = centred(V::load_int(high[r]), V::load_int(low[r]), weight_sum[r]);
        V::store(o2 + static_cast<std::size_t>(r) * n + digit, V::mul(x, V::set(half_step[r])));
      }
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
    const std::size_t sealed_at = call.sealed_offset + unit.kv_head * call.sealed_stride;
    const SealedLayout at(kFormat, d);

    // Logits.
    const std::byte* hot[kSegmentPages];
    const std::byte* sealed[kSegmentPages];
    int sealed_page[kSegmentPages];
    bool is_sealed[kSegmentPages];
    int n_sealed = 0;
    const bool by_tiles = hot_by_tiles(d);
    if constexpr (V::kTileSums) V::begin_tiles(rows);
    for (int n = 0; n < n_pages; ++n) {
      const std::int64_t page = first / kPageTokens + n;
      float* logits = buffers.logits + n * kPageTokens;
      is_sealed[n] = kBits > 0 && unit.reads_sealed(page);
      if constexpr (kBits > 0) prefetch_k(unit, page + 1, at);
      if (is_sealed[n]) {
        const std::byte* codes = unit.sequence->sealed[page] + sealed_at;
        sealed_page[n_sealed] = n;
        sealed[n_sealed++] = codes;
        if constexpr (kBySums) {
          logits_by_sums(codes, at, d, rows, queries, logits);
        } else if constexpr (kBits > 0) {
          Common::template in_row_blocks<kCodeRows>(rows, [&]<int R>(int r) {
            float* to = logits + static_cast<std::size_t>(r) * kLogitStride;
            if constexpr (kByChannel)
              logits_by_channel<R>(codes, at, d, queries, r, to);
            else
              logits_by_row<R>(codes, at, d, queries, r, to);
          });
        }
      } else {
        hot[n] = unit.hot_page(page);
        const int tokens =
            n_tokens - n * kPageTokens < kPageTokens ? n_tokens - n * kPageTokens : kPageTokens;
        if constexpr (V::kTileSums) {
          if (by_tiles) {
            V::hot_logits_page(hot[n], d, queries.bf16_high, queries.bf16_low, rows, logits);
            continue;
          }
        }
        in_row_blocks(rows, [&]<int R>(int r) {
          Common::template hot_logits_page<R>(hot[n], d, tokens,
                                              queries.plain + static_cast<std::size_t>(r) * d,
                                              logits + static_cast<std::size_t>(r) * kLogitStride);
        });
      }
    }

    // Softmax within the segment. What a row does not see is set to -inf, not multiplied.
    const int padded = n_pages * kPageTokens;
    float half_step[kMaxRowsOnStack], centre_mass[kMaxRowsOnStack];
    std::int32_t weight_sum[kMaxRowsOnStack];
    for (int r = 0; r < rows; ++r) {
      float* logits = buffers.logits + static_cast<std::size_t>(r) * kLogitStride;
      const std::int64_t visible64 = unit.position + r / unit.group + 1 - first;
      const int visible = visible64 < kSegmentTokens ? static_cast<int>(visible64) : kSegmentTokens;
      for (int t = visible; t < padded; ++t) logits[t] = kMinusInfinity;
      F most = V::set(kMinusInfinity);
      for (int t = 0; t < padded; t += W) most = V::max(most, V::load(logits + t));
      const float maximum = V::largest(most);
      F mass = V::set(0.0f), sealed_mass = V::set(0.0f), centres = V::set(0.0f);
      F most_weight = V::set(0.0f);
      for (int n = 0; n < n_pages; ++n) {
        float* p_at = logits + n * kPageTokens;
        if (!is_sealed[n]) {
          for (int t = 0; t < kPageTokens; t += W) {
            const F p = exp_nonpositive(V::subtract(V::load(p_at + t), V::set(maximum)));
            mass = V::add(mass, p);
            V::store(p_at + t, p);
          }
        } else {
          const std::byte* page = unit.sequence->sealed[first / kPageTokens + n] + sealed_at;
          if constexpr (kBits > 0) prefetch_v(page, at, r, rows);
          for (int t = 0; t < kPageTokens; t += W) {
            const F p = exp_nonpositive(V::subtract(V::load(p_at + t), V::set(maximum)));
            sealed_mass = V::add(sealed_mass, p);
            if constexpr (kGrouped) {
              V::store(p_at + t, p);
            } else {
              const F w = V::mul(p, V::load_half(page + at.v_scales + t * 2));
              if constexpr (kFormat.affine)
                centres = V::fma(p, V::load_half(page + at.v_centres + t * 2), centres);
              most_weight = V::max(most_weight, w);
              V::store(p_at + t, w);
            }
          }
        }
      }
      out.maximum[r] = maximum;
      out.sealed_mass[r] = V::sum(sealed_mass);
      out.mass[r] = V::sum(mass) + out.sealed_mass[r];
      centre_mass[r] = V::sum(centres);
      if constexpr (!kGrouped) {
        const float largest_weight = n_sealed > 0 ? V::largest(most_weight) : 0.0f;
        const float inverse = inverse_of(largest_weight);
        std::int32_t sum = 0;
        for (int s = 0; s < n_sealed; ++s) {
          const int from = sealed_page[s] * kPageTokens;
          sum += split_words(logits + from, kPageTokens, inverse, kMaxWeight,
                             buffers.weights_high + r * kSegmentTokens + from,
                             buffers.weights_low + r * kSegmentTokens + from);
        }
        half_step[r] = largest_weight * (0.5f / kMaxWeight);
        weight_sum[r] = sum;
      }
    }

    // Values.
    if constexpr (V::kTileSums) {
      if (by_tiles) V::hot_values(hot, is_sealed, n_tokens, d, rows, buffers.logits, out.o);
    }
    if (!by_tiles) {
      for (int c = 0; c < rows * d; c += W) V::store(out.o + c, V::set(0.0f));
      for (int n = 0; n < n_pages; ++n) {
        if (is_sealed[n]) continue;
        const int tokens =
            n_tokens - n * kPageTokens < kPageTokens ? n_tokens - n * kPageTokens : kPageTokens;
        in_row_blocks(rows, [&]<int R>(int r) {
          Common::template hot_values_page<R>(
              hot[n], d, tokens,
              buffers.logits + static_cast<std::size_t>(r) * kLogitStride + n * kPageTokens,
              out.o + static_cast<std::size_t>(r) * d);
        });
      }
    }
    if constexpr (kBySums) {
      if (n_sealed > 0)
        values_by_sums(sealed, sealed_page, n_sealed, at, rows, buffers, half_step, weight_sum,
                       out.o2);
    }
    if constexpr (V::kTileSums) V::end_tiles();
    if constexpr (kBySums) {
      if (n_sealed > 0) return;
    }
    if constexpr (kBits > 0) {
      const int n = at.v_digits;
      if (n_sealed == 0) {
        for (int c = 0; c < rows * n; c += W) V::store(out.o2 + c, V::set(0.0f));
        return;
      }
      for (int group = 0; group < at.v_groups; ++group) {
        const int begin = kGrouped ? group * kFormat.v_group : 0;
        const int end = kGrouped && begin + kFormat.v_group < n ? begin + kFormat.v_group : n;
        if constexpr (kGrouped) {
          for (int r = 0; r < rows; ++r) {
            group_weights(buffers, r, sealed, sealed_page, n_sealed, at, group, half_step + r,
                          weight_sum + r, centre_mass + r);
          }
        }
        Common::template in_row_blocks<kCodeRows>(rows, [&]<int R>(int r) {
          for (int digit = begin; digit < end; digit += W) {
            float* o2 = out.o2 + static_cast<std::size_t>(r) * n + digit;
            sealed_values<R>(
                sealed, sealed_page, n_sealed, at, digit, buffers.weights_high + r * kSegmentTokens,
                buffers.weights_low + r * kSegmentTokens, half_step + r, weight_sum + r, o2);
            if constexpr (kFormat.affine) {
              for (int i = 0; i < R; ++i)
                V::store(o2 + i * n, V::add(V::load(o2 + i * n), V::set(centre_mass[r + i])));
            }
          }
        });
      }
    }
  }

  // The weights of one row for one group of V's channels, from the probabilities.
  static void group_weights(const AttentionBuffers& buffers, int r, const std::byte* const* pages,
                            const int* page_of, int n_pages, const SealedLayout& at, int group,
                            float* half_step, std::int32_t* weight_sum, float* centre_mass) {
    const float* p = buffers.logits + static_cast<std::size_t>(r) * kLogitStride;
    const std::size_t skip = static_cast<std::size_t>(group) * kPageTokens * 2;
    F most = V::set(0.0f), centres = V::set(0.0f);
    for (int n = 0; n < n_pages; ++n) {
      for (int t = 0; t < kPageTokens; t += W) {
        const F x = V::load(p + page_of[n] * kPageTokens + t);
        const std::byte* page = pages[n] + skip + t * 2;
        most = V::max(most, V::mul(x, V::load_half(page + at.v_scales)));
        centres = V::fma(x, V::load_half(page + at.v_centres), centres);
      }
    }
    const float largest_weight = V::largest(most);
    const float inverse = inverse_of(largest_weight);
    std::int32_t sum = 0;
    for (int n = 0; n < n_pages; ++n) {
      const int from = page_of[n] * kPageTokens;
      float w[kPageTokens];
      for (int t = 0; t < kPageTokens; t += W) {
        V::store(w + t, V::mul(V::load(p + from + t),
                               V::load_half(pages[n] + skip + at.v_scales + t * 2)));
      }
      sum += split_words(w, kPageTokens, inverse, kMaxWeight,
                         buffers.weights_high + r * kSegmentTokens + from,
                         buffers.weights_low + r * kSegmentTokens + from);
    }
    *half_step = largest_weight * (0.5f / kMaxWeight);
    *weight_sum = sum;
    *centre_mass = V::sum(centres);
  }

  static void merge(const AttentionUnit& unit, const AttentionState& into,
                    const AttentionState& from) {
    const int d = unit.call->head_dim;
    for (int r = 0; r < unit.rows(); ++r) {
      const float maximum = into.maximum[r] > from.maximum[r] ? into.maximum[r] : from.maximum[r];
      const float a = exp_one(into.maximum[r] - maximum), b = exp_one(from.maximum[r] - maximum);
      into.maximum[r] = maximum;
      into.mass[r] = into.mass[r] * a + from.mass[r] * b;
      into.sealed_mass[r] = into.sealed_mass[r] * a + from.sealed_mass[r] * b;
      const auto scale = [&](float* x, const float* y, int n) {
        for (int c = 0; c < n; c += W)
          V::store(x + c, V::fma(V::load(y + c), V::set(b), V::mul(V::load(x + c), V::set(a))));
      };
      scale(into.o + static_cast<std::size_t>(r) * d, from.o + static_cast<std::size_t>(r) * d, d);
      if constexpr (kBits > 0) {
        const int n = v_digits(kFormat, d);
        scale(into.o2 + static_cast<std::size_t>(r) * n, from.o2 + static_cast<std::size_t>(r) * n,
              n);
      }
    }
  }

  static void finish(const AttentionUnit& unit, const AttentionState& state) {
    const AttentionCall& call = *unit.call;
    const int d = call.head_dim;
    if constexpr (kBits > 0) {
      if (unit.reads_any_sealed()) {
        const KvTransform& transform = call.transforms[unit.kv_head];
        const int n = v_digits(kFormat, d);
        if (transform.v_mean != nullptr) {
          for (int r = 0; r < unit.rows(); ++r) {
            float* o = state.o + static_cast<std::size_t>(r) * d;
            const F mass = V::set(state.sealed_mass[r]);
            for (int c = 0; c < d; c += W)
              V::store(o + c, V::fma(V::load(transform.v_mean + c), mass, V::load(o + c)));
          }
        }
        if (transform.v_decode != nullptr) {
          in_row_blocks(unit.rows(), [&]<int R>(int r) {
            Common::template times_matrix<R>(state.o2 + static_cast<std::size_t>(r) * n,
                                             transform.v_decode, n, d,
                                             state.o + static_cast<std::size_t>(r) * d);
          });
        } else {
          for (int c = 0; c < unit.rows() * d; c += W)
            V::store(state.o + c, V::add(V::load(state.o + c), V::load(state.o2 + c)));
        }
      }
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
  static constexpr AttentionKernels kernels() { return {prepare, segment, merge, finish}; }
};

// The kernels of every mode for one vector type.
template <class V, std::size_t... kIndex>
constexpr AttentionTable attention_table(std::index_sequence<kIndex...>) {
  return {Attention<V, static_cast<int>(kIndex)>::kernels()...};
}
template <class V>
constexpr AttentionTable attention_table() {
  return attention_table<V>(std::make_index_sequence<std::size(kKvFormats)>());
}

}  // namespace
}  // namespace foretoken::kernels
