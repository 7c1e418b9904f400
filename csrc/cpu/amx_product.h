// x . weight^T on the matrix unit, for any number of rows of bf16 (or of int8).
//
// Four groups of 16 rows of weights at a time are unpacked to levels, which the L1 cache holds,
// while the matrix unit multiplies the four before them with every block of x. The sums of each
// group are multiplied by its scales in fp32, so nothing is rounded before the sum but levels, to
// bf16.
#pragma once

#include <utility>

#include "amx_sums.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int64_t kBlocks = 8;  // of x that meet a block of weights at once

// Groups [group, group + count) of 16 rows of weights.
struct Batch {
  int64_t row, rows, group, count;
  const BlockScales* scales;
};

template <Operand operand, int group_size, int width>
class Product {
 public:
  using Group = Unpack<operand, group_size>;
  static constexpr int kTiles = Group::kTiles;
  static constexpr int kSlots = kBatch * kTiles;  // products of tiles
  static constexpr int kLines = kTileRows * width * 4;
  static constexpr int kSums = kTileRows * width;
  static constexpr int kBytes = group_size / 2;

  PHIQUANT_MEMBER Product(const CodeTask& task, const uint8_t* tables)
      : task_(task),
        tables_(tables),
        groups_(groups_of(task.layout)),
        x_block_(steps_of(task.layout, operand == Operand::kInt8) * kLines) {
    std::memset(weights_, 0, sizeof weights_);  // rows that a last block has not stay finite
  }

  // Rows [begin, end) of the weight with `blocks` blocks of x from `first` on.
  PHIQUANT_MEMBER bool run(int64_t begin, int64_t end, int64_t first, int64_t blocks) {
    Batch next{begin, 0, 0, 0, nullptr};
    place(&next, end);
    unpack(next, weights_[0], 0, kTileRows);
    for (int64_t number = 0;; number++) {
      const Batch now = next;
      const bool more = advance(&next, end);
      const uint8_t* weights = weights_[number % 2];
      for (int64_t i = 0; i < blocks; i++) {
        const uint8_t* x = task_.x + (first + i) * x_block_ + now.group * kTiles * kLines;
        before_tile_loads();
        if (i == 0 && more) {
          multiply<true>(weights, x, next, weights_[(number + 1) % 2]);
        } else {
          multiply<false>(weights, x, next, nullptr);
        }
        settle();
        pending_ = {now.scales->scale[now.group % kGroups], totals_ + i * kSums, sums_,
                    now.group == 0};
      }
      if (now.group + now.count == groups_) leave(now, first, blocks);
      if (!more) return good_;
    }
  }

 private:
  struct Pending {
    const float* scales;
    float* total;
    int sums;
    bool first;  // of its rows: there is no total yet
  };

  // Fills in what follows from a batch's row and group.
  PHIQUANT_MEMBER void place(Batch* batch, int64_t end) {
    const int64_t rest = groups_ - batch->group;
    batch->rows = end - batch->row < kTileRows ? end - batch->row : kTileRows;
    batch->count = rest < kBatch ? rest : kBatch;
    if (batch->group % kGroups == 0) {
      scales_turn_ = (scales_turn_ + 1) % 3;
      const int64_t many = rest < kGroups ? rest : kGroups;
      const int16_t* words = task_.planes.scale + batch->row * groups_ + batch->group;
      good_ &= read_block_scales(task_.layout, words, groups_, batch->rows, many,
                                 Levels<operand>::kBytes, &scales_[scales_turn_]);
    }
    batch->scales = &scales_[scales_turn_];
  }

  PHIQUANT_MEMBER bool advance(Batch* batch, int64_t end) {
    batch->group += batch->count;
    if (batch->group == groups_) {
      batch->group = 0;
      batch->row += kTileRows;
      if (batch->row >= end) return false;
    }
    place(batch, end);
    return true;
  }

  // Rows [first, last) of a batch to one buffer of tiles.
  PHIQUANT_MEMBER void unpack(const Batch& batch, uint8_t* to, int64_t first, int64_t last) {
    if (last > batch.rows) last = batch.rows;
    for (int64_t i = first; i < last; i++) {
      const int64_t before = ((batch.row + i) * groups_ + batch.group) * kBytes;
      const uint8_t* index = task_.planes.index + before;
      const uint8_t* deviation =
          operand == Operand::kPosition ? task_.planes.deviation + before : index;
      const uint32_t* tables = batch.scales->table[i] + batch.group % kGroups;
      ask_for_next(batch, i);
      const auto group = [&](int64_t j) {
        Group::run(index + j * kBytes, deviation + j * kBytes, tables_ + tables[j],
                   to + j * kTiles * kTileBytes + i * 64);
      };
      if (batch.count == kBatch) {
        for (int64_t j = 0; j < kBatch; j++) group(j);
      } else {
        for (int64_t j = 0; j < batch.count; j++) group(j);
      }
    }
  }

  // Memory is asked for the 16 rows after these from their first byte to their last: in the order
  // in which they are used, some bytes of every row, it delivers half as fast.
  PHIQUANT_MEMBER void ask_for_next(const Batch& batch, int64_t i) {
    const int64_t next = (batch.row + kTileRows) * groups_;
    const int64_t from = (next + batch.group * kTileRows + i * kBatch) * kBytes;
    for (int64_t at = from; at < from + kBatch * kBytes; at += 64) {
      prefetch(task_.planes.index + at);
      if (operand == Operand::kPosition) prefetch(task_.planes.deviation + at);
    }
  }

  // One batch with one block of x, to sums_; meanwhile the next batch is unpacked.
  template <bool unpacks>
  PHIQUANT_MEMBER void multiply(const uint8_t* weights, const uint8_t* x, const Batch& next,
                                uint8_t* to) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const auto slots = [&]<int... slot>(std::integer_sequence<int, slot...>) {
      const auto both = [&](auto number) {
        constexpr int here = number;
        if constexpr (unpacks) {
          unpack(next, to, here * kTileRows / kSlots, (here + 1) * kTileRows / kSlots);
        }
        multiply_slot<here>(weights, x);
      };
      (both(std::integral_constant<int, slot>()), ...);
    };
    slots(std::make_integer_sequence<int, kSlots>());
    sums_ = 1 - sums_;
    float* sums = tile_[sums_];
    _tile_stored(0, sums, width * 4);
    _tile_stored(1, sums + kSums, width * 4);
    _tile_stored(2, sums + 2 * kSums, width * 4);
    _tile_stored(3, sums + 3 * kSums, width * 4);
  }

  // The slot's tile of weights times its lines of x: the batch's groups take turns.
  template <int slot>
  static PHIQUANT_MEMBER void multiply_slot(const uint8_t* weights, const uint8_t* x) {
    constexpr int group = slot % kBatch, tile = group * kTiles + slot / kBatch;
    const uint8_t *left = weights + tile * kTileBytes, *right = x + tile * kLines;
#define PHIQUANT_MULTIPLY(sum, first, second)  \
  if constexpr (group == sum) {                \
    _tile_loadd(first, left, 64);              \
    _tile_loadd(second, right, width * 4);     \
    if constexpr (operand == Operand::kInt8) { \
      _tile_dpbssd(sum, first, second);        \
    } else {                                   \
      _tile_dpbf16ps(sum, first, second);      \
    }                                          \
  }
    PHIQUANT_MULTIPLY(0, 4, 6)
    PHIQUANT_MULTIPLY(1, 5, 7)
    PHIQUANT_MULTIPLY(2, 4, 6)
    PHIQUANT_MULTIPLY(3, 5, 7)
#undef PHIQUANT_MULTIPLY
  }

  // Adds the sums of the batch before to its totals, which by now are out of the matrix unit.
  PHIQUANT_MEMBER void settle() {
    if (pending_.total == nullptr) return;
    Sums<width> sums;
    for (int i = 0; i < width; i++) {
      sums.part[i] = pending_.first ? vf{} : load<vf>(pending_.total + 16 * i);
    }
    for (int i = 0; i < kBatch; i++) {
      sums.template add<operand == Operand::kInt8>(tile_[pending_.sums] + i * kSums,
                                                   pending_.scales + i * kTileRows);
    }
    for (int i = 0; i < width; i++) store(pending_.total + 16 * i, sums.part[i]);
    pending_.total = nullptr;
  }

  PHIQUANT_MEMBER void leave(const Batch& batch, int64_t first, int64_t blocks) {
    settle();
    for (int64_t i = 0; i < blocks; i++) {
      const int64_t x = (first + i) * width, rest = task_.m - x;
      const float* factors = task_.factors == nullptr ? nullptr : task_.factors + x;
      store_sums<width>(totals_ + i * kSums, task_.bias, factors, batch.row, batch.rows, x,
                        rest < width ? rest : width, task_.out_features,
                        static_cast<uint16_t*>(task_.out));
    }
  }

  const CodeTask& task_;
  const uint8_t* tables_;
  int64_t groups_, x_block_;  // bytes of one block of x
  bool good_ = true;
  int scales_turn_ = 0, sums_ = 0;
  Pending pending_{nullptr, nullptr, 0, false};
  BlockScales scales_[3];  // of the batch that is to be settled, this one and the next
  alignas(64) uint8_t weights_[2][kBatch * kTiles * kTileBytes];
  alignas(64) float tile_[2][kBatch * kSums];
  alignas(64) float totals_[kBlocks * kSums];
};

template <Operand operand, int group_size, int width>
static bool multiply_rows(const CodeTask& task, int64_t begin, int64_t end) {
  const Tiles tiles(width);
  const Levels<operand> levels(Curve::of(task.layout));
  Product<operand, group_size, width> product(task, levels.tables());
  const int64_t blocks = (task.m + width - 1) / width;
  bool good = true;
  for (int64_t first = 0; first < blocks; first += kBlocks) {
    good &= product.run(begin, end, first, blocks - first < kBlocks ? blocks - first : kBlocks);
  }
  return good;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
