#include "sixteen_launch.cuh"

namespace phiquant::cuda {
namespace {

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Bytes of shared memory that rings may have, and of a unit and a box, by tiles of a pass; as
// SixteenShape and SixteenRoom have it, for 16 rows of x.
struct RingSizes {
  int unit, box, others;

  RingSizes(int deviation, int tall, int columns) {
    unit = unit_tiles(deviation, tall) * kSixteen * (128 + 32 * deviation);
    box = kQuad * 16 * kColumn * 2;
    others = tall * kSixteen * (kColumnWarps * 8 + columns * 2);
  }
};

}  // namespace

SixteenCut cut_into(const SixteenPlan& plan, int blocks) {
  constexpr int kStatic = 4096;  // what the kernel has besides, and what aligns rings
  const int room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStatic;
  const int most = attribute(cudaDevAttrMultiProcessorCount) / blocks;
  SixteenCut cut{};
  cut.blocks = blocks;
  cut.clusters = plan.tiles < most ? plan.tiles : most;
  cut.columns = ceil_div(ceil_div(plan.groups, kQuad), blocks) * kQuad;
  const int tiles = ceil_div(plan.tiles, cut.clusters);
  const int steps = ceil_div(cut.columns, kColumnWarps);
  for (int passes = ceil_div(tiles, kMostTall);; passes++) {
    cut.tall = ceil_div(tiles, passes);
    const RingSizes sizes(plan.task.layout.deviation_bits, cut.tall, cut.columns);
    const int left = room - sizes.others - kQuads * sizes.box;
    cut.units = left > 0 ? left / (kQuads * sizes.unit) : 0;
    if (!cut.fits() && cut.tall > 1) continue;
    if (cut.units > kMostUnits) cut.units = kMostUnits;
    // Fitted to products of eight shapes: a step costs two tiles besides its own, adding up the
    // sums of two blocks four; the most tall pass has no registers left.
    const double spilled = cut.tall == kMostTall ? 1.2 : 0;
    cut.cost = passes * (steps * (cut.tall + spilled + 2) + 6) + 4 * (blocks - 1);
    return cut;
  }
}

}  // namespace phiquant::cuda
