// How often an NVIDIA GPU issues what the kernels are made of:
//   nvcc -O3 -arch=native benchmarks/cuda_rates.cu -o build/cuda_rates && build/cuda_rates
// Cycles of a scheduler an instruction, with four warps on each of a multiprocessor's four, eight
// independent instructions a warp. Compute capability 8.0 and on.
#include <cstdint>
#include <cstdio>

constexpr int kRounds = 256, kIndependent = 8, kThreads = 512;

struct Lane {
  uint32_t word, b, c;
  float sums[4];
};

struct PackedFma {
  static constexpr const char* kName = "fp16x2 multiply-add";
  __device__ static void go(Lane& x) {
    asm volatile("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x.word) : "r"(x.b), "r"(x.c));
  }
};
struct BrainFma {
  static constexpr const char* kName = "bf16x2 multiply-add";
  __device__ static void go(Lane& x) {
    asm volatile("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(x.word) : "r"(x.b), "r"(x.c));
  }
};
struct Logic {
  static constexpr const char* kName = "logic (lop3)";
  __device__ static void go(Lane& x) {
    asm volatile("lop3.b32 %0, %0, %1, %2, 0xEA;" : "+r"(x.word) : "r"(x.b), "r"(x.c));
  }
};
struct Permutation {
  static constexpr const char* kName = "bytes (prmt)";
  __device__ static void go(Lane& x) {
    asm volatile("prmt.b32 %0, %0, %1, %2;" : "+r"(x.word) : "r"(x.b), "r"(x.c));
  }
};
struct Shift {
  static constexpr const char* kName = "shift";
  __device__ static void go(Lane& x) {
    asm volatile("shf.r.wrap.b32 %0, %0, %1, 5;" : "+r"(x.word) : "r"(x.b));
  }
};
struct IntegerFma {
  static constexpr const char* kName = "int32 multiply-add";
  __device__ static void go(Lane& x) {
    asm volatile("mad.lo.u32 %0, %0, %1, %2;" : "+r"(x.word) : "r"(x.b), "r"(x.c));
  }
};
struct ThreeSum {
  static constexpr const char* kName = "sum of three int32";
  __device__ static void go(Lane& x) {
    asm volatile("{.reg .u32 two; add.u32 two, %0, %1; add.u32 %0, two, %2;}"
                 : "+r"(x.word)
                 : "r"(x.b), "r"(x.c));
  }
};
struct ByteDot {
  static constexpr const char* kName = "bytes' dot (dp4a)";
  __device__ static void go(Lane& x) {
    asm volatile("dp4a.u32.u32 %0, %0, %1, %2;" : "+r"(x.word) : "r"(x.b), "r"(x.c));
  }
};
struct LogicAndByteDot {
  static constexpr const char* kName = "logic and bytes' dot";
  __device__ static void go(Lane& x) {
    Logic::go(x);
    auto* const dot = reinterpret_cast<uint32_t*>(x.sums);
    asm volatile("dp4a.u32.u32 %0, %0, %1, %2;" : "+r"(*dot) : "r"(x.b), "r"(x.c));
  }
};
struct Zeros {
  static constexpr const char* kName = "leading zeros";
  __device__ static void go(Lane& x) { asm volatile("bfind.shiftamt.u32 %0, %0;" : "+r"(x.word)); }
};
struct Shuffle {
  static constexpr const char* kName = "shuffle of lanes";
  __device__ static void go(Lane& x) {
    asm volatile("shfl.sync.up.b32 %0, %0, 1, 0, 0xFFFFFFFF;" : "+r"(x.word));
  }
};
struct Conversion {
  static constexpr const char* kName = "two fp32 to bf16x2";
  __device__ static void go(Lane& x) {
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %0;" : "+r"(x.word) : "r"(x.b));
  }
};
struct HalfProduct {
  static constexpr const char* kName = "mma.m16n8k16, fp16";
  __device__ static void go(Lane& x) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(x.sums[0]), "+f"(x.sums[1]), "+f"(x.sums[2]), "+f"(x.sums[3])
        : "r"(x.word), "r"(x.b), "r"(x.c));
  }
};
struct ByteProduct {
  static constexpr const char* kName = "mma.m16n8k32, int8";
  __device__ static void go(Lane& x) {
    auto* const sums = reinterpret_cast<int*>(x.sums);
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%6}, "
        "{%0,%1,%2,%3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(x.word), "r"(x.b), "r"(x.c));
  }
};

template <class Instruction>
__global__ void repeat(uint32_t seed, uint32_t* out, long long* cycles) {
  Lane lanes[kIndependent];
  for (int i = 0; i < kIndependent; i++)
    lanes[i] = {seed * (threadIdx.x + i), seed, seed + 2, {1.0f, 1.0f, 1.0f, 1.0f}};
  __syncthreads();
  const long long start = clock64();
  for (int n = 0; n < kRounds; n++) {
#pragma unroll
    for (int i = 0; i < kIndependent; i++) Instruction::go(lanes[i]);
  }
  const long long end = clock64();
  uint32_t kept = 0;
  for (const Lane& x : lanes) kept += x.word + __float_as_uint(x.sums[0]);
  out[threadIdx.x] = kept;
  if (threadIdx.x == 0) *cycles = end - start;
}

template <class Instruction>
void measure(uint32_t* out, long long* cycles) {
  long long taken = 0;
  for (int i = 0; i < 2; i++) repeat<Instruction><<<1, kThreads>>>(3, out, cycles);
  const cudaError_t error = cudaMemcpy(&taken, cycles, sizeof taken, cudaMemcpyDeviceToHost);
  if (error != cudaSuccess) {
    std::printf("%s: %s\n", Instruction::kName, cudaGetErrorString(error));
    return;
  }
  const double each = kRounds * kIndependent * (kThreads / 128.0);
  std::printf("%-22s %5.2f\n", Instruction::kName, static_cast<double>(taken) / each);
}

template <class... Instructions>
void measure_all(uint32_t* out, long long* cycles) {
  (measure<Instructions>(out, cycles), ...);
}

int main() {
  uint32_t* out = nullptr;
  long long* cycles = nullptr;
  if (cudaMalloc(&out, kThreads * sizeof *out) != cudaSuccess ||
      cudaMalloc(&cycles, sizeof *cycles) != cudaSuccess) {
    std::printf("no GPU, or no memory on it\n");
    return 1;
  }
  measure_all<PackedFma, BrainFma, Logic, Permutation, Shift, IntegerFma, ThreeSum, ByteDot,
              LogicAndByteDot, Zeros, Shuffle, Conversion, HalfProduct, ByteProduct>(out, cycles);
}
