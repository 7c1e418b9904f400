// How products of up to 16 rows of x are cut, so that they take least time.
#include "sixteen_launch.cuh"

namespace phiquant::cuda {
namespace {

constexpr double kBlockCost = 4;  // of one block that follows another, in tiles of a warp

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

// Fitted by hand to products of six shapes, in tiles of a warp: a step costs two tiles besides its
// own; the tallest pass has no registers left.
double cost_of_pass(int steps, int tall) {
  const double spilled = tall == kMostTall ? 1.2 : 0;
  return steps * (tall + spilled + 2) + 6;
}

// As many units as there is room for; fewer than two: none.
int units_of(const SixteenPlan& plan, const SixteenCut& cut) {
  constexpr int kStatic = 4096;  // what the kernel has besides, and what aligns rings
  const int room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStatic;
  const RingSizes sizes(plan.task.layout.deviation_bits, cut.tall, cut.columns);
  const int left = room - sizes.others - kQuads * sizes.box;
  const int units = left > 0 ? left / (kQuads * sizes.unit) : 0;
  return units < kMostUnits ? units : kMostUnits;
}

}  // namespace

SixteenCut cut_into(const SixteenPlans& plans, int blocks) {
  const SixteenPlan& plan = plans.of[0];
  int tiles_of[kMostWeights] = {};
  for (int i = 0; i < plans.count; i++) tiles_of[i] = plans.of[i].tiles;
  SixteenCut cut{};
  cut.shares = {tiles_of, plans.count, attribute(cudaDevAttrMultiProcessorCount) / blocks};
  cut.blocks = blocks;
  cut.eights = plan.task.m <= 8 ? 1 : 2;
  cut.columns = ceil_div(ceil_div(plan.groups, kQuad), blocks) * kQuad;
  const int tiles = cut.shares.tiles;
  const int steps = ceil_div(cut.columns, kColumnWarps);
  for (int passes = ceil_div(tiles, kMostTall);; passes++) {
    cut.tall = ceil_div(tiles, passes);
    cut.units = units_of(plan, cut);
    // Adding up the sums of two blocks costs four tiles.
    cut.cost = passes * cost_of_pass(steps, cut.tall) + 4 * (blocks - 1);
    if (cut.fits() || cut.tall == 1) return cut;
  }
}

SixteenCut cut_experts(const SixteenPlan& plan) {
  const int many = static_cast<int>(plan.task.m < plan.experts ? plan.task.m : plan.experts);
  const int processors = attribute(cudaDevAttrMultiProcessorCount);
  SixteenCut best{};
  for (int tall = kMostTall < plan.tiles ? kMostTall : plan.tiles; tall > 0; tall--) {
    SixteenCut cut{};
    cut.blocks = 1;
    // An expert with more rows takes several turns; most have few.
    cut.eights = plan.task.m <= 8 || plan.task.m <= 4 * plan.experts ? 1 : 2;
    cut.each = ceil_div(plan.tiles, tall);
    const int clusters = cut.each * many;
    cut.shares = BlockShares(clusters);
    cut.tall = ceil_div(plan.tiles, cut.each);
    cut.columns = ceil_div(plan.groups, kQuad) * kQuad;
    cut.units = units_of(plan, cut);
    const int steps = ceil_div(cut.columns, kColumnWarps);
    cut.cost = ceil_div(clusters, processors) * (cost_of_pass(steps, cut.tall) + kBlockCost);
    if (cut.fits() && (!best.fits() || cut.cost < best.cost)) best = cut;
  }
  return best;
}

}  // namespace phiquant::cuda
