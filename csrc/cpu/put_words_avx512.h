// A block's remainders to bytes, four weights of at most 14 bits joined in every 64-bit lane.
#pragma once

#include "exact_decode.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Bits, least significant first. Bytes beyond the last bit are written too.
struct WordWriter {
  uint8_t* to;
  uint64_t held = 0;
  int64_t count = 0;  // bits that are held, below 8

  // At most 56 bits.
  PHIQUANT_MEMBER void put(uint64_t value, int64_t width) {
    held |= value << count;
    std::memcpy(to, &held, sizeof held);
    count += width;
    to += count >> 3;
    held >>= count & 56;
    count &= 7;
  }
};

// One block, in memory of its own: what follows it in the payload may be another thread's.
struct BlockWriter {
  WordWriter words;
  uint8_t bytes[kBlock * kMostBits<Dtype::kBFloat16> / 8 + sizeof(uint64_t)];

  PHIQUANT_MEMBER void begin() { words = {bytes}; }
  PHIQUANT_MEMBER void copy_to(uint8_t* payload) const {
    std::memcpy(payload, bytes, static_cast<size_t>(words.to - bytes + (words.count > 0)));
  }
};

// Joins 32 words of at most 14 bits into 8 of at most 56.
PHIQUANT_INLINE void put_words(__m512i words, __m512i widths, WordWriter* writer) {
  alignas(64) uint64_t joined[8], bits[8];
  const __m512i one = _mm512_set1_epi16(1), lower = _mm512_set1_epi64(0xFFFFFFFF);
  const __m512i powers = _mm512_sllv_epi16(one, _mm512_slli_epi32(widths, 16));
  const __m512i pairs = _mm512_madd_epi16(words, powers);
  const __m512i pair_widths = _mm512_madd_epi16(widths, one);
  const __m512i first_widths = _mm512_and_si512(pair_widths, lower);
  constexpr int kMaskOr = 0xEA;  // first & second | third
  _mm512_store_si512(
      joined,
      _mm512_ternarylogic_epi64(
          pairs, lower, _mm512_sllv_epi64(_mm512_srli_epi64(pairs, 32), first_widths), kMaskOr));
  _mm512_store_si512(bits, _mm512_add_epi64(first_widths, _mm512_srli_epi64(pair_widths, 32)));
  WordWriter to = *writer;  // in registers: bytes that are written could be its own
  for (int i = 0; i < 8; i += 2) {
    const int64_t width = static_cast<int64_t>(bits[i]), next = static_cast<int64_t>(bits[i + 1]);
    if (width + next <= 56) [[likely]] {
      to.put(joined[i] | joined[i + 1] << width, width + next);
    } else {
      to.put(joined[i], width);
      to.put(joined[i + 1], next);
    }
  }
  *writer = to;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
