// Products of at most 8 rows of x with a lossy weight, decoded in registers for the tensor cores.
//
// A warp takes 16 rows of the weight and 8 groups of 64 columns, a chunk. Lane 4 r + t holds the
// codes of columns 16 t .. 16 t + 15 of every group, of rows r and r + 8: 8 bytes of a plane, 32 of
// a row side by side. One mma.m16n8k16 multiplies 16 columns of all rows; its 8 columns are the
// rows of x, and where these are fewer, different groups, so that a group's sums come out apart,
// and each lane applies few scales. Warps of a block share 16 rows of the weight: they add up in
// one order.
//
// Instructions a weight, M = 1: 2.1 to make p and p^3 of an index (2.8 with 4 deviation bits), 1/4
// for mma, 1/8 to apply scales, 1/8 for loads. At 3 TB/s an H100 has 5.5 (10.5).
#include <type_traits>

#include "basis.cuh"
#include "fragments.cuh"
#include "grid.cuh"
#include "sums.cuh"

namespace phiquant::cuda {
namespace {

constexpr int kTile = 16;  // rows of the weight that a block takes at a time
constexpr int kChunk = 8;  // groups that a warp takes at a time
constexpr int kMostRows = 8;

// What was fastest on an H100 of what was tried, index alone by less than times vary; with 4 and 8
// rows some keep a few bytes on the stack. Twice `stage` groups of codes are on their way while
// others are multiplied.
template <int deviation, int rows>
struct Shape {
  static constexpr bool kSmall = rows == 1 && deviation != 0;
  static constexpr int kWarps = kSmall ? 4 : 8;                      // of a block
  static constexpr int kStage = rows == 1 && deviation < 8 ? 2 : 4;  // groups loaded together
  static constexpr int kBlocks = rows > 1         ? (deviation == 8 ? 1 : 2)  // of a multiprocessor
                                 : deviation == 0 ? 3
                                 : deviation == 8 ? 3
                                                  : 5;
};

struct Sums {
  float of[4];  // rows r, r, r + 8, r + 8; columns 2 t, 2 t + 1
};

__device__ __forceinline__ void multiply_add(Sums* sums, uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums->of[0]), "+f"(sums->of[1]), "+f"(sums->of[2]), "+f"(sums->of[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Pairs of rows r and r + 8 with 8 columns of x.
__device__ __forceinline__ void multiply_add(Sums* sums, const __half2 (&upper)[4],
                                             const __half2 (&lower)[4], const uint4& x) {
  multiply_add(sums, bits_of(upper[0]), bits_of(lower[0]), bits_of(upper[1]), bits_of(lower[1]),
               x.x, x.y);
  multiply_add(sums, bits_of(upper[2]), bits_of(lower[2]), bits_of(upper[3]), bits_of(lower[3]),
               x.z, x.w);
}

// The codes of one lane, group and row: 16 columns.
template <int deviation>
struct Codes {
  uint2 index, high, low;
};

__device__ __forceinline__ uint2 stream(const uint8_t* from) {
  uint2 words;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "l"(from));
  return words;
}

// One row's place in the planes, for one lane.
template <int deviation>
struct Row {
  const uint8_t *index, *high, *low;
  const uint16_t* scale;

  __device__ __forceinline__ Row(const Planes& planes, int64_t row, int groups, int part) {
    const int64_t group = row * groups;
    index = planes.index + group * 32 + part * 8;
    high = deviation == 2 ? planes.deviation + group * 16 + part * 4
                          : planes.deviation + group * 32 + part * 8;
    low = planes.deviation_low + group * 32 + part * 8;
    scale = planes.scale + group;
  }

  __device__ __forceinline__ void load(int group, Codes<deviation>* codes) const {
    codes->index = stream(index + group * 32);
    if constexpr (deviation == 2) {
      codes->high.x = __ldg(reinterpret_cast<const uint32_t*>(high + group * 16));
      codes->high.y = codes->high.x >> 16;
    }
    if constexpr (deviation >= 4) codes->high = stream(high + group * 32);
    if constexpr (deviation == 8) codes->low = stream(low + group * 32);
  }
};

template <int deviation>
__device__ __forceinline__ void multiply_octet(uint32_t upper_index, uint32_t upper_high,
                                               uint32_t upper_low, uint32_t lower_index,
                                               uint32_t lower_high, uint32_t lower_low,
                                               const uint4& x, Sums* linear, Sums* cubic) {
  Basis upper, lower;
  make_basis<deviation>(upper_index, upper_high, &upper);
  make_basis<deviation>(lower_index, lower_high, &lower);
  multiply_add(linear, upper.p, lower.p, x);
  multiply_add(cubic, upper.c, lower.c, x);
  if constexpr (deviation == 8) {
    FineBasis finer, finest;
    make_fine_basis(upper, upper_low, &finer);
    make_fine_basis(lower, lower_low, &finest);
    multiply_add(linear, finer.q, finest.q, x);
    multiply_add(cubic, finer.e, finest.e, x);
  }
}

template <int offset>
__device__ __forceinline__ uint4 shared_at(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address), "n"(offset));
  return words;
}

__device__ __forceinline__ uint32_t address_of(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// What the warps of a block share. `rows` of x: 1, 2, 4 or 8.
template <int rows, int warps>
struct Shared {
  Bend bends[kBendCount];
  uint4 zeros[rows * 4 + 4];  // as far as a lane reads from where a group begins
  float partial[2][warps][kTile * rows];
};

// One warp's sums over some chunks of one tile.
template <int deviation, int rows, bool brain>
struct Worker {
  using Shaped = Shape<deviation, rows>;
  static constexpr int kStage = Shaped::kStage;
  static constexpr int kSpread = 8 / rows;           // groups whose sums come out side by side
  static constexpr int kScales = rows == 1 ? 2 : 1;  // groups that a lane's two columns are of

  const Shared<rows, Shaped::kWarps>* shared;
  const float* back;
  uint32_t mine, zeros;  // addresses in shared memory: of this lane's column of x, group 0
  int spread;            // which of kSpread groups that column is of
  int groups, lane;
  float unit;
  Layout layout;
  float sums[2][2];

  // Column n of a product is row n % rows of x, in the group n / rows of the ones spread.
  __device__ __forceinline__ uint32_t operand(int group, int place) const {
    constexpr uint32_t kStep = 2 * rows * 4 * sizeof(uint4);
    return place % kSpread == spread ? mine + static_cast<uint32_t>(group) * kStep : zeros;
  }

  __device__ __forceinline__ int scaled_group(int column) const {
    return (2 * (lane & 3) + column) / rows;
  }

  // Sums of the groups from `first` on, kSpread of them, times their scales.
  __device__ __forceinline__ void apply(int first, const Row<deviation> (&row)[2],
                                        const Sums& linear, const Sums& cubic) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      Scale scale;
      Bend bend;
#pragma unroll
      for (int column = 0; column < 2; column++) {
        const int group = first + scaled_group(column);
        if (column < kScales) {
          scale = scale_of(layout, __ldg(row[r].scale + min(group, groups - 1)), unit);
          bend = shared->bends[scale.bend];
        }
        const int m = (2 * (lane & 3) + column) % rows, i = 2 * r + column;
        const float level = bend.line * linear.of[i] + bend.cubic * cubic.of[i];
        const float factor = brain ? scale.value * back[group * rows + m] : scale.value;
        sums[r][rows == 1 ? 0 : column] += level * factor;
      }
    }
  }

  __device__ __forceinline__ void load(int first, const Row<deviation> (&row)[2],
                                       Codes<deviation> (&codes)[kStage][2]) const {
    const bool whole = first + kStage <= groups;
#pragma unroll
    for (int i = 0; i < kStage; i++) {
      const int group = whole ? first + i : min(first + i, groups - 1);
      row[0].load(group, &codes[i][0]);
      row[1].load(group, &codes[i][1]);
    }
  }

  // One group of both rows.
  __device__ __forceinline__ void multiply(int group, int place, const Codes<deviation> (&codes)[2],
                                           Sums* linear, Sums* cubic) const {
    const uint32_t x = operand(group, place);
    const Codes<deviation>&upper = codes[0], &lower = codes[1];
    multiply_octet<deviation>(upper.index.x, upper.high.x, upper.low.x, lower.index.x, lower.high.x,
                              lower.low.x, shared_at<0>(x), linear, cubic);
    multiply_octet<deviation>(upper.index.y, upper.high.y, upper.low.y, lower.index.y, lower.high.y,
                              lower.low.y, shared_at<rows * 64>(x), linear, cubic);
  }

  // kStage groups, from `place` of their chunk on; sums begin where spread groups begin.
  __device__ __forceinline__ void multiply_stage(int first, int place,
                                                 const Row<deviation> (&row)[2],
                                                 const Codes<deviation> (&codes)[kStage][2],
                                                 Sums* linear, Sums* cubic) {
#pragma unroll
    for (int i = 0; i < kStage; i++) {
      if ((place + i) % kSpread == 0) *linear = *cubic = Sums{};
      multiply(first + i, place + i, codes[i], linear, cubic);
      if ((place + i) % kSpread == kSpread - 1)
        apply(first + i - kSpread + 1, row, *linear, *cubic);
    }
  }

  // Adds up the lanes whose columns are of one row of x, and leaves the tile's partial sums.
  __device__ __forceinline__ void finish(float* partial) {
    const int part = lane & 3, row = lane >> 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
      for (int column = 0; column < (rows == 1 ? 1 : 2); column++) {
        float sum = sums[r][column];
        if (rows <= 2) sum += __shfl_xor_sync(~0u, sum, 1);
        if (rows <= 4) sum += __shfl_xor_sync(~0u, sum, 2);
        if (part < (rows + 1) / 2) partial[(row + 8 * r) * rows + 2 * part + column] = sum;
      }
    }
  }
};

template <int deviation, int rows, bool brain>
__global__ void __launch_bounds__(Shape<deviation, rows>::kWarps * 32,
                                  Shape<deviation, rows>::kBlocks)
    product(ProductTask task, int groups, int chunks, int64_t tiles) {
  using T = std::conditional_t<brain, __nv_bfloat16, __half>;
  extern __shared__ uint4 fragments[];
  constexpr int kStage = Shape<deviation, rows>::kStage;
  __shared__ Shared<rows, Shape<deviation, rows>::kWarps> shared;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  float* const back = reinterpret_cast<float*>(fragments + chunks * kChunk * rows * 8);
  Worker<deviation, rows, brain> worker{
      &shared,
      back,
      address_of(fragments + ((lane >> 2) % rows) * 4 + (lane & 3)),
      address_of(shared.zeros),
      (lane >> 2) / rows,
      groups,
      lane,
      power_of_two(task.layout.exponent),
      task.layout,
      {}};

  const auto row_of = [&](int64_t tile, int r) {
    const int64_t row = tile * kTile + (lane >> 2) + 8 * r;
    return Row<deviation>(task.planes, row < task.out_features ? row : task.out_features - 1,
                          groups, lane & 3);
  };
  int64_t tile = blockIdx.x;
  Row<deviation> row[2] = {row_of(tile, 0), row_of(tile, 1)};
  Codes<deviation> near[kStage][2], far[kStage][2];
  worker.load(warp * kChunk, row, near);
  worker.load(warp * kChunk + kStage, row, far);

  if (threadIdx.x < kBendCount) {
    const int i = static_cast<int>(threadIdx.x);
    shared.bends[i] = {kDeviceLines.of[i] / 8, kDeviceBends.of[i] / 512};
  }
  if (threadIdx.x < rows * 4 + 4) shared.zeros[threadIdx.x] = uint4{};
  fill_fragments<brain, rows>(static_cast<const uint16_t*>(task.x), task.m, task.layout.columns,
                              chunks * kChunk, fragments, back);
  __syncthreads();

  for (int turn = 0; tile < tiles; turn ^= 1) {
    worker.sums[0][0] = worker.sums[0][1] = worker.sums[1][0] = worker.sums[1][1] = 0;
    const int64_t next_tile = tile + gridDim.x;
    for (int chunk = warp; chunk < chunks; chunk += warps) {
      const bool turns = chunk + warps >= chunks;  // to the next tile, if there is one
      const int next = (turns ? warp : chunk + warps) * kChunk;
      const bool more = !turns || next_tile < tiles;
      Row<deviation> following[2] = {row[0], row[1]};
      if (turns && more) {
        following[0] = row_of(next_tile, 0);
        following[1] = row_of(next_tile, 1);
      }
      Sums linear, cubic;
#pragma unroll
      for (int place = 0; place < kChunk; place += 2 * kStage) {
        const bool last = place + 2 * kStage == kChunk;
        const int ahead = last ? next : chunk * kChunk + place + 2 * kStage;
        worker.multiply_stage(chunk * kChunk + place, place, row, near, &linear, &cubic);
        if (!last || more) worker.load(ahead, last ? following : row, near);
        worker.multiply_stage(chunk * kChunk + place + kStage, place + kStage, row, far, &linear,
                              &cubic);
        if (!last || more) worker.load(ahead + kStage, last ? following : row, far);
      }
      row[0] = following[0];
      row[1] = following[1];
    }
    worker.finish(shared.partial[turn][warp]);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTile * rows;
         i += static_cast<int>(blockDim.x)) {
      float sum = 0;
      for (int w = 0; w < warps; w++) sum += shared.partial[turn][w][i];
      const int64_t at = tile * kTile + i / rows;
      if (i % rows < task.m && at < task.out_features) store_sum<T>(task, i % rows, at, sum);
    }
    tile = next_tile;
  }
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}

int groups_in(const Layout& layout) { return static_cast<int>(groups_of(layout)); }
int chunks_in(const Layout& layout) { return (groups_in(layout) + kChunk - 1) / kChunk; }
int64_t bytes_of(const Layout& layout, int rows) {
  return int64_t{chunks_in(layout)} * kChunk * rows * (kGroupBytes + sizeof(float));
}
// Dynamic shared memory of a block: what the device lends, without `Shared`.
int64_t room() {
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
         static_cast<int64_t>(sizeof(Shared<kMostRows, 8>));
}

// One row of x is prepared as fast as a tile is found; more are worth being kept for several tiles.
template <int rows, class Kernel>
unsigned blocks_for(Kernel kernel, int64_t tiles, int threads, int bytes) {
  if (rows == 1) return static_cast<unsigned>(tiles);
  int blocks = 1;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, bytes);
  const int64_t most =
      int64_t{attribute(cudaDevAttrMultiProcessorCount)} * (blocks > 0 ? blocks : 1);
  return static_cast<unsigned>(tiles < most ? tiles : most);
}

template <int deviation, int rows, bool brain>
void launch(const ProductTask& task, cudaStream_t stream) {
  const int chunks = chunks_in(task.layout);
  const int64_t tiles = (task.out_features + kTile - 1) / kTile;
  const auto bytes = static_cast<int>(bytes_of(task.layout, rows));
  const auto kernel = product<deviation, rows, brain>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  constexpr int kWarps = Shape<deviation, rows>::kWarps;
  const int threads = 32 * (chunks < kWarps ? chunks : kWarps);
  kernel<<<blocks_for<rows>(kernel, tiles, threads, bytes), threads, bytes, stream>>>(
      task, groups_in(task.layout), chunks, tiles);
}

template <int deviation, bool brain>
void launch_rows(const ProductTask& task, int rows, cudaStream_t stream) {
  switch (rows) {
    case 1:
      return launch<deviation, 1, brain>(task, stream);
    case 2:
      return launch<deviation, 2, brain>(task, stream);
    case 4:
      return launch<deviation, 4, brain>(task, stream);
    default:
      return launch<deviation, 8, brain>(task, stream);
  }
}

template <int deviation>
void launch_type(const ProductTask& task, int rows, cudaStream_t stream) {
  if (task.dtype == Dtype::kBFloat16) return launch_rows<deviation, true>(task, rows, stream);
  launch_rows<deviation, false>(task, rows, stream);
}

void launch_part(const ProductTask& task, int rows, cudaStream_t stream) {
  switch (task.layout.deviation_bits) {
    case 0:
      return launch_type<0>(task, rows, stream);
    case 2:
      return launch_type<2>(task, rows, stream);
    case 4:
      return launch_type<4>(task, rows, stream);
    default:
      return launch_type<8>(task, rows, stream);
  }
}

}  // namespace

bool multiplies(const ProductTask& task) {
  const Layout& layout = task.layout;
  const auto at = [](const void* plane) { return reinterpret_cast<uintptr_t>(plane); };
  const uintptr_t deviation = at(task.planes.deviation) & (layout.deviation_bits == 2 ? 3 : 7);
  const bool aligned =
      ((at(task.planes.index) | at(task.planes.deviation_low)) & 7) == 0 && deviation == 0;
  return aligned && layout.index_bits == 4 && layout.grid == GridName::kPhi &&
         layout.group_size == kGroup && task.dtype != Dtype::kFloat32 && task.m <= kMostRows &&
         layout.columns < (int64_t{1} << 24) && bytes_of(layout, 1) <= room();
}

// Rows that do not fit into shared memory together are multiplied one after the other.
void multiply(const ProductTask& task, cudaStream_t stream) {
  int rows = 1;
  while (rows < task.m && bytes_of(task.layout, 2 * rows) <= room()) rows *= 2;
  for (int64_t done = 0; done < task.m; done += rows) {
    ProductTask part = task;
    part.x = static_cast<const uint16_t*>(task.x) + done * task.layout.columns;
    part.out = static_cast<uint16_t*>(task.out) + done * task.out_features;
    part.m = task.m - done < rows ? task.m - done : rows;
    launch_part(part, rows, stream);
  }
}

}  // namespace phiquant::cuda
