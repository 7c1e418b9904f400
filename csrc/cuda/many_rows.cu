// Which products are taken by tiles on a Hopper GPU, and how they are cut.
#include "many_rows_kernel.cuh"
#include "many_rows_map.h"

namespace phiquant::cuda {
namespace {

constexpr int kFewest = 33;             // rows of x
constexpr int kSmallestExponent = -80;  // below, terms that scales are multiplied into lose bits

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

Matrix plane_matrix(const ProductTask& task, const uint8_t* plane, int bits) {
  const int64_t bytes = row_bytes(task.layout, bits);
  return {plane, task.out_features, bytes, bytes, 1};
}
// 64 columns of a warp's rows together.
CUtensorMap map_codes(const ProductTask& task, const uint8_t* plane, int bits) {
  return map_boxes(plane_matrix(task, plane, bits), 32, plane_bytes(bits));
}
Matrix x_matrix(const ProductTask& task) {
  return {task.x, task.m, task.layout.columns, task.layout.columns * 2, 2};
}

// Bytes of the parts of a workspace; none if no tile is shared.
struct ManyRoom {
  int64_t partial, arrived;

  ManyRoom(const ProductTask& task, const ManyCut& cut) : partial(0), arrived(0) {
    if (!cut.shared) return;
    partial = cut.pairs(task, multiprocessors()) * kPair * 2 * kPanelRows * cut.wide * 4;
    arrived = cut.tiles(task) * kPair * kConsumers * 4;
  }
};

TileTask tile_task(const ProductTask& task, const ManyCut& cut, uint32_t magic, void* workspace) {
  const Layout& layout = task.layout;
  const int64_t grains = cut.grains(task), pairs = cut.pairs(task, multiprocessors());
  auto* const partial = static_cast<uint8_t*>(workspace);
  return {layout,
          task.planes.scale,
          task.bias,
          task.out,
          task.out_features,
          task.m,
          static_cast<int>(steps_of(layout)),
          layout.group_size == 2 * kStepColumns ? 1 : 0,
          static_cast<int>(groups_of(layout)),
          static_cast<int>(cut.wide_tiles(task)),
          static_cast<int>(cut.grain(task)),
          static_cast<int>(grains / pairs),
          static_cast<int>(grains % pairs),
          reinterpret_cast<float4*>(partial),
          reinterpret_cast<unsigned*>(partial + ManyRoom(task, cut).partial),
          task.out_features % 8 == 0 && (reinterpret_cast<uintptr_t>(task.out) & 15) == 0,
          groups_of(layout) % 8 == 0 && (reinterpret_cast<uintptr_t>(task.planes.scale) & 15) == 0,
          magic};
}

template <class T, int deviation, int wide>
void launch(const ProductTask& task, const ManyCut& cut, void* workspace, cudaStream_t stream) {
  const CUtensorMap x = map_boxes(x_matrix(task), wide / kPair, kStepColumns);
  const CUtensorMap index = map_codes(task, task.planes.index, 4);
  CUtensorMap high{};
  if (deviation > 0) high = map_codes(task, task.planes.deviation, deviation);
  const TileTask tiles = tile_task(task, cut, kMagic<deviation>, workspace);
  const ManyRoom room(task, cut);
  if (room.arrived > 0) {
    cudaMemsetAsync(tiles.arrived, 0, static_cast<size_t>(room.arrived), stream);
  }
  const auto kernel = multiply_tiles<T, deviation, wide>;
  constexpr int kBytes = sizeof(TileShared<deviation, wide>);
  static_assert(kBytes <= kRoom);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kPair, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cut.pairs(task, multiprocessors()) * kPair));
  config.blockDim = dim3(kTileThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, x, index, high, tiles);
}

template <class T, int deviation>
void launch_cut(const ProductTask& task, void* workspace, cudaStream_t stream) {
  const ManyCut cut = best_cut(task, multiprocessors());
  switch (cut.wide) {
    case 64:
      return launch<T, deviation, 64>(task, cut, workspace, stream);
    case 128:
      return launch<T, deviation, 128>(task, cut, workspace, stream);
    case 192:
      return launch<T, deviation, 192>(task, cut, workspace, stream);
    default:
      return launch<T, deviation, 256>(task, cut, workspace, stream);
  }
}

template <class T>
void launch_tier(const ProductTask& task, void* workspace, cudaStream_t stream) {
  switch (task.layout.deviation_bits) {
    case 0:
      return launch_cut<T, 0>(task, workspace, stream);
    case 2:
      return launch_cut<T, 2>(task, workspace, stream);
    default:
      return launch_cut<T, 4>(task, workspace, stream);
  }
}

// Whether the kernels were compiled for this very device, Hopper's own instructions in them.
bool has_kernels() {
  if (attribute(cudaDevAttrComputeCapabilityMajor) != 9) return false;
  cudaFuncAttributes about;
  const auto kernel = multiply_tiles<__nv_bfloat16, 0, 256>;
  if (cudaFuncGetAttributes(&about, kernel) != cudaSuccess) return false;
  return about.binaryVersion == 90 && about.ptxVersion == 90;
}

}  // namespace

bool multiplies_many(const ProductTask& task) {
  const Layout& layout = task.layout;
  const bool format = layout.index_bits == 4 && layout.grid == GridName::kPhi &&
                      layout.group_size >= kStepColumns && layout.deviation_bits <= 4 &&
                      (layout.deviation_bits == 0 || layout.exponent >= kSmallestExponent) &&
                      task.remainder.payload == nullptr;
  if (!format || task.dtype == Dtype::kFloat32 || task.m < kFewest) return false;
  const auto can_copy = [&](const uint8_t* plane, int bits) {
    return bits == 0 || can_map(plane_matrix(task, plane, bits));
  };
  const bool mapped = can_map(x_matrix(task)) && can_copy(task.planes.index, 4) &&
                      can_copy(task.planes.deviation, layout.deviation_bits);
  if (!mapped || !has_kernels()) return false;
  const ManyCut cut = best_cut(task, multiprocessors());
  return cut.tiles(task) * steps_of(task.layout) < (int64_t{1} << 30) &&
         cut.microseconds(task, multiprocessors()) < decoded_microseconds(task);
}

int64_t many_workspace(const ProductTask& task) {
  const ManyRoom room(task, best_cut(task, multiprocessors()));
  return room.partial + room.arrived;
}

void multiply_many(const ProductTask& task, void* workspace, cudaStream_t stream) {
  if (task.dtype == Dtype::kBFloat16) return launch_tier<__nv_bfloat16>(task, workspace, stream);
  launch_tier<__half>(task, workspace, stream);
}

}  // namespace phiquant::cuda
