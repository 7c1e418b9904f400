// Weights to planes: the best scale word of every group, then the codes.
#pragma once

#include "choose.h"
#include "codes.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Groups go through each step together, so that the steps' latencies overlap.
inline constexpr int kBatch = 4;

// A group on its way.
struct Work {
  Group group;
  Candidates candidates;
  Scan scanned;
  bool scannable;
  Contest contest;
};

// Codes of a group, and its scale word.
PHIQUANT_INLINE int16_t encode_phi(const PhiSearch& search, const EncodeTask& task, Work* work,
                                   int32_t* codes) {
  const Group& group = work->group;
  const int best = choose(search, task, group, work->candidates, &work->contest);
  const Trial trial = trial_of(search, group, work->candidates, best);
  int32_t* number = work->contest.number[work->contest.kept];
  if (work->contest.numbered || (trial.plain && quick_numbers(search, group, trial, number))) {
    codes_of(search, group, trial, number, codes);
  } else {
    for (int at = 0; at < search.layout.group_size; at += kLanes) {
      const vf weight = load<vf>(group.weight + at);
      store(codes + at, find_codes(search, trial, trial.negative ? -weight : weight));
    }
  }
  return static_cast<int16_t>(work->candidates.word[best] | (trial.negative ? 0x8000 : 0) |
                              best / 2);
}

PHIQUANT_INLINE void write_plane(uint8_t* plane, const Layout& layout, int64_t group, int bits,
                                 const int32_t* codes, int shift) {
  if (bits == 0) return;
  alignas(64) uint8_t bytes[kLargestGroup];
  const int32_t mask = (1 << bits) - 1;
  for (int i = 0; i < layout.group_size; i++) {
    bytes[i] = static_cast<uint8_t>(codes[i] >> shift & mask);
  }
  pack(bits, bytes, layout.group_size, plane + group * group_bytes(layout, bits));
}

#if !defined(PHIQUANT_PACK_CODES)
// An instruction set may have a faster way for some layouts: see pack_codes_avx512.h.
PHIQUANT_INLINE bool pack_codes(const EncodeTask&, int64_t, const int32_t*) { return false; }
#endif

PHIQUANT_INLINE void write_group(const EncodeTask& task, int64_t group, int64_t count, int16_t word,
                                 int32_t* codes) {
  const Layout& layout = task.layout;
  const int low = low_bits(layout);
  for (int64_t i = count; i < layout.group_size; i++) codes[i] = 0;
  task.scale[group] = word;
  if (pack_codes(task, group, codes)) return;
  write_plane(task.index, layout, group, layout.index_bits, codes, layout.deviation_bits);
  write_plane(task.deviation, layout, group, high_bits(layout), codes, low);
  write_plane(task.deviation_low, layout, group, low, codes, 0);
}

// False if a weight is not finite and may not be.
PHIQUANT_INLINE bool load_work(const EncodeTask& task, const PhiSearch& search, int64_t row,
                               int64_t column, int64_t count, Work* work) {
  const Layout& layout = task.layout;
  const int64_t width = size_of(task.dtype);
  const uint8_t* from =
      static_cast<const uint8_t*>(task.weight) + (row * layout.columns + column) * width;
  const bool finite = load_group(layout, task.dtype, from, count, &work->group);
  if (!finite && !task.exact) return false;
  work->group.importance = task.importance == nullptr ? nullptr : task.importance + column;
  prepare_group(search, &work->group, &work->candidates);
  work->scannable =
      search.scan != nullptr && work->group.plain && work->candidates.all_covered &&
      (task.prices == nullptr || (task.importance == nullptr && layout.deviation_bits < 8));
  return true;
}

PHIQUANT_INLINE void open_contest(const EncodeTask& task, const PhiSearch& search, Work* work) {
  if (!work->scannable) return open_contest(&work->contest);
  open_contest(search, task, work->group, work->candidates, work->scanned, &work->contest);
}

static bool encode_row(const EncodeTask& task, const PhiSearch& search, int64_t row) {
  const Layout& layout = task.layout;
  const int64_t groups = groups_of(layout);
  Work work[kBatch];
  alignas(64) int32_t codes[kLargestGroup];
  for (int64_t first = 0; first < groups; first += kBatch) {
    const int64_t rest = groups - first, many = rest < kBatch ? rest : kBatch;
    const auto count_of = [&](int64_t i) {
      const int64_t left = layout.columns - (first + i) * layout.group_size;
      return left < layout.group_size ? left : layout.group_size;
    };
    for (int64_t i = 0; i < many; i++) {
      const int64_t column = (first + i) * layout.group_size;
      if (!load_work(task, search, row, column, count_of(i), work + i)) return false;
    }
    for (int64_t i = 0; i < many; i++) {
      if (work[i].scannable)
        scan(search, task, work[i].group, work[i].candidates, &work[i].scanned);
    }
    for (int64_t i = 0; i < many; i++) open_contest(task, search, work + i);
    for (int64_t i = 0; i < many; i++) {
      Work& w = work[i];
      if (w.scannable) begin_contest(search, task, w.group, w.candidates, &w.contest);
    }
    for (int64_t i = 0; i < many; i++) {
      Work& w = work[i];
      if (w.scannable) go_on(search, task, w.group, w.candidates, &w.contest);
    }
    for (int64_t i = 0; i < many; i++) {
      const int16_t word = layout.grid == GridName::kPhi
                               ? encode_phi(search, task, work + i, codes)
                               : encode_golden(task, work[i].group, work[i].candidates, codes);
      write_group(task, row * groups + first + i, count_of(i), word, codes);
    }
  }
  return true;
}

static Status encode(const EncodeTask& task, int64_t begin, int64_t end) {
  const PhiSearch search(task);
  for (int64_t row = begin; row < end; row++) {
    if (!encode_row(task, search, row)) return Status::kNotFinite;
  }
  return Status::kOk;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
