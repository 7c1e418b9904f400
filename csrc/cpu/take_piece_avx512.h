// The remainders of 64 weights at once: prefix sums of their widths, a byte permutation that brings
// eight bytes to every chunk of eight weights, and a shift of its own for every weight.
#pragma once

#include "exact_decode.h"
#include "piece_avx512.h"
#include "take_bits_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Bytes of remainders, where `cells` have theirs.
struct PieceRests {
  __m512i low, high;
};

// As PieceConstants.
struct TakeConstants {
  Bytes ones = bytes_of([](int) { return 1; });
  // Every chunk's place is given the totals of the chunks before it, and the first one's, where
  // there are none, all of them. Totals are the last bytes of chunks.
  Bytes totals = bytes_of([](int place) { return place_of_chunk(place % 8) * 8 + 7; });
  Bytes before =
      bytes_of([](int place) { return place < 8 || place % 8 < weight_at(place) / 8 ? 255 : 0; });
  Bytes later = bytes_of([](int place) { return place < 8 ? 0 : 255; });
  Bytes bit_in_byte = bytes_of([](int) { return 7; });
  Bytes beyond = bytes_of([](int) { return 64; });
  Bytes byte_of_bit = bytes_of([](int) { return 3; });
  Bytes next_bytes = bytes_of([](int place) { return place % 8; });
  Bytes high_byte = bytes_of([](int) { return 8; });
  // Bits of a low and of a high byte, by width.
  Bytes low_bits = bytes_of([](int i) { return i % 16 < 8 ? (1 << i % 16) - 1 : 255; });
  Bytes high_bits = bytes_of([](int i) { return i % 16 < 8 ? 0 : (1 << (i % 16 - 8)) - 1; });
};

// Of words in the order of weights, the low bytes as a piece has them; the high ones are next.
static constexpr Bytes kBytesOfWords = bytes_of([](int place) { return weight_at(place) * 2; });

// Sixteen at a time: for chunks of which some weights are so near to zero that a chunk has 64 bits.
static PieceRests take_wide_piece(BitReader* reader, __m512i width) {
  alignas(64) uint8_t widths[kPiece];
  alignas(64) uint16_t rests[kPiece];
  _mm512_store_si512(widths, width);
  for (int at = 0; at < kPiece; at += kLanes) {
    uint8_t next[kLanes];
    std::memcpy(next, widths + place_in_piece(at), 8);
    std::memcpy(next + 8, widths + place_in_piece(at + 8), 8);
    store(rests + at, narrow(fast_take_bits<Dtype::kBFloat16>(reader, widen(next))));
  }
  const __m512i first = _mm512_load_si512(rests), second = _mm512_load_si512(rests + 32);
  const __m512i low = vector_of(kBytesOfWords);
  const __m512i high = _mm512_or_si512(low, _mm512_set1_epi8(1));
  return {_mm512_permutex2var_epi8(first, low, second),
          _mm512_permutex2var_epi8(first, high, second)};
}

// The next 64 remainders of the widths of a piece, at most 14 bits each. 23 instructions.
PHIQUANT_INLINE PieceRests take_piece(const TakeConstants& constants, BitReader* reader,
                                      __m512i width) {
  alignas(64) static constexpr uint64_t kBits[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const __m512i zero = _mm512_setzero_si512();
  const __m512i sums = _mm512_mullo_epi64(width, vector_of(constants.ones));  // within chunks
  const __m512i totals = _mm512_permutexvar_epi8(vector_of(constants.totals), sums);
  const __m512i before =
      _mm512_sad_epu8(_mm512_and_si512(totals, vector_of(constants.before)), zero);
  const int64_t total = _mm_cvtsi128_si64(_mm512_castsi512_si128(before)), bit = reader->bit & 7;
  const __m512i begin = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(kBits[bit])),
                                         _mm512_and_si512(before, vector_of(constants.later)));
  constexpr int kMaskOr = 0xEA;  // first & second | third
  // A shift counts below 64: with 64 on top, the last bit of a chunk tells by a sign if it is out.
  const __m512i within = _mm512_ternarylogic_epi64(_mm512_multishift_epi64_epi8(zero, begin),
                                                   vector_of(constants.bit_in_byte),
                                                   vector_of(constants.beyond), kMaskOr);
  const __m512i end = _mm512_add_epi8(within, sums), shift = _mm512_sub_epi8(end, width);
  if (_mm512_movepi8_mask(end) != 0 || bit + total > 512) [[unlikely]] {
    return take_wide_piece(reader, width);
  }
  const __m512i from =
      _mm512_add_epi8(_mm512_multishift_epi64_epi8(vector_of(constants.byte_of_bit), begin),
                      vector_of(constants.next_bytes));
  const __m512i bytes =
      _mm512_permutexvar_epi8(from, _mm512_loadu_si512(reader->bytes + (reader->bit >> 3)));
  reader->bit += total;
  const __m512i low = _mm512_multishift_epi64_epi8(shift, bytes);
  const __m512i high =
      _mm512_multishift_epi64_epi8(_mm512_add_epi8(shift, vector_of(constants.high_byte)), bytes);
  return {_mm512_and_si512(low, _mm512_shuffle_epi8(vector_of(constants.low_bits), width)),
          _mm512_and_si512(high, _mm512_shuffle_epi8(vector_of(constants.high_bits), width))};
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
