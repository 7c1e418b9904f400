// Warps that decode: a thread one row of 64 columns at a time, from codes that its warp has copied
// for itself to a stage of weights. Warpgroups take units in turn.
#pragma once

#include "many_rows_async.cuh"
#include "many_rows_codes.cuh"

namespace phiquant::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A place in a block's units.
struct UnitCursor {
  int unit, step;
  int64_t weight_row;  // the tile's first

  __device__ __forceinline__ UnitCursor(const TileTask& task, const BlockPlace& place, int at)
      : unit(at) {
    const int tile = at / task.steps;
    step = at - tile * task.steps;
    weight_row = place.weight_row(task, tile);
  }

  __device__ __forceinline__ void advance(const TileTask& task, const BlockPlace& place, int by) {
    unit += by;
    step += by;
    if (step >= task.steps) *this = UnitCursor(task, place, unit);
  }
};

// Scale words of a row: 8 together where rows begin at 16 bytes, else one. A warp's loads of its 32
// rows are 32 lines, however little of each is taken.
struct ScaleWords {
  uint4 eight{};
  int which = 0;    // of them
  int held = -1;    // the step that they begin with, in units of what they last for
  int64_t row = 0;  // of the tile they are of

  __device__ __forceinline__ uint32_t word() const {
    const uint32_t low = which & 2 ? eight.y : eight.x, high = which & 2 ? eight.w : eight.z;
    return (which & 4 ? high : low) >> ((which & 1) * 16) & 0xFFFF;
  }

  // Asks for the word of this step, `of` a thread's own row; nothing waits for it before `word`.
  __device__ __forceinline__ void ask(const TileTask& task, int64_t tile_row, int64_t of,
                                      int step) {
    const int group = step >> task.step_shift;
    const uint16_t* const from = task.scale + of * task.groups;
    if (!task.eight_words) {
      which = 0;
      eight.x = load_word(from + group);
      return;
    }
    which = group & 7;
    if (held == group >> 3 && row == tile_row) return;
    held = group >> 3;
    row = tile_row;
    eight = load_words(from + held * 8);
  }
};

struct CodeMaps {
  const CUtensorMap *index, *high;
};

template <class T, int deviation, int wide>
struct Decoder {
  using Shared = TileShared<deviation, wide>;
  using Codes = WarpCodes<deviation>;

  const TileTask& task;
  const BlockPlace& place;
  const CodeMaps maps;
  Shared& shared;
  int warp, lane, row;  // of all decoders' warps; in it; of the tile
  Turn<Shared::kSlots> slot;
  Turn<Shared::kWeightStages> stage;
  UnitCursor copied, scaled;  // what codes, and scale words, are asked for next
  ScaleWords words;

  __device__ __forceinline__ Decoder(const TileTask& task, const BlockPlace& place,
                                     const CodeMaps& maps, Shared& shared, int warp, int lane)
      : task(task),
        place(place),
        maps(maps),
        shared(shared),
        warp(warp),
        lane(lane),
        row((warp & 3) * 32 + lane),
        copied(task, place, place.first + warp / 4),
        scaled(copied) {
    for (int i = 0; i < warp / 4; i++) stage.advance();
  }

  // Codes of the warp's next unit, to a slot whose codes all lanes have used: that they were loaded
  // is not enough, because copies do not wait for loads under way.
  __device__ __forceinline__ void copy(int to) {
    if (copied.unit >= place.last) return;
    Codes& codes = shared.codes[warp][to];
    const uint32_t full = shared_address(&shared.codes_full[warp][to]);
    const int from = static_cast<int>(copied.weight_row) + (warp & 3) * 32;
    arrive_with_bytes(lane == 0, full, sizeof(Codes));
    copy_box(lane == 0, shared_address(codes.index), maps.index, copied.step * plane_bytes(4), from,
             full);
    if constexpr (deviation > 0) {
      copy_box(lane == 0, shared_address(codes.high), maps.high,
               copied.step * plane_bytes(deviation), from, full);
    }
    copied.advance(task, place, kDecoders);
  }

  // A row that the weight does not have is its last one.
  __device__ __forceinline__ void ask_for_word() {
    if (scaled.unit >= place.last) return;
    const int64_t of = min(scaled.weight_row + row, task.out_features - 1);
    words.ask(task, scaled.weight_row, of, scaled.step);
    scaled.advance(task, place, kDecoders);
  }

  __device__ __forceinline__ RowLevels<T, deviation> levels_of(uint32_t word) const {
    const Scale scale = scale_of(task.layout, word, power_of_two(task.layout.exponent));
    const Bend bend = shared.bends[scale.bend];
    return RowLevels<T, deviation>({bend.line, bend.cubic, scale.value});
  }

  // Eighths of a row are swapped as copies swap them.
  __device__ __forceinline__ void store(const RowCodes<deviation>& codes,
                                        const RowLevels<T, deviation>& levels) const {
    const uint32_t to = shared_address(shared.weights[stage.stage]) + row * 128;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      store_words(to + ((i ^ (row & 7)) * 16), codes.template weights<T>(levels, task.magic, i));
    }
  }

  // Levels of the next row are made while stores are under way; nothing is asked for then, because
  // `show_to_products` would wait for it.
  __device__ __forceinline__ void run() {
    for (int i = 0; i < Shared::kSlots; i++) copy(i);
    ask_for_word();
    RowLevels<T, deviation> levels = levels_of(words.word());
    ask_for_word();
    for (int unit = place.first + warp / 4; unit < place.last; unit += kDecoders) {
      RowCodes<deviation> codes;
      wait_for(shared_address(&shared.codes_full[warp][slot.stage]), slot.parity);
      codes.load(shared_address(&shared.codes[warp][slot.stage]), lane);
      wait_for(shared_address(&shared.weights_empty[stage.stage]), stage.parity ^ 1);
      store(codes, levels);
      levels = levels_of(words.word());
      show_to_products();
      __syncwarp();
      if (lane == 0) arrive(shared_address(&shared.weights_full[stage.stage]));
      ask_for_word();
      copy(slot.stage);
      slot.advance();
      for (int i = 0; i < kDecoders; i++) stage.advance();
    }
  }
};

#endif

}  // namespace phiquant::cuda
