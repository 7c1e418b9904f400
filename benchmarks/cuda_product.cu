// One product of a lossy weight with random codes, without Python, for whoever works on a kernel.
// On Hopper (elsewhere -arch=native):
//   nvcc -std=c++20 -O3 -arch=sm_90a --expt-relaxed-constexpr -Icsrc/include -Icsrc/cuda
//        benchmarks/cuda_product.cu csrc/cuda/*.cu -o build/cuda_product   (takes minutes, once)
//   build/cuda_product 14336x4096 16 4   # outputs x inputs, rows of x, deviation bits: 0, 2, 4
// Microseconds in a CUDA graph, of weights that together exceed the L2 cache, and the largest error
// of 40 rows of the weight, against fp64, as a part of the root of the summed squares of their
// terms plus the result.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"
#include "phiquant/grid.h"

using namespace phiquant;
using namespace phiquant::cuda;

namespace {

constexpr size_t kTogether = 256'000'000;  // bytes: five times an H100's L2
constexpr int kGroup = 64, kExponent = -10, kRounds = 12;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* on_device(const std::vector<T>& of) {
  void* there = nullptr;
  const size_t bytes =
      of.size() * sizeof(T) + 16;  // a plane that is not there, too, has an address
  check(cudaMalloc(&there, bytes));
  check(cudaMemcpy(there, of.data(), of.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(there);
}

float from_brain(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

double from_half(uint16_t bits) {
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}

// What a product is of, in the host's memory.
struct Operands {
  int64_t outputs, inputs, rows, groups;
  int deviation;
  std::vector<uint8_t> index, high;
  std::vector<uint16_t> words, x;

  Operands(int64_t outputs, int64_t inputs, int64_t rows, int deviation)
      : outputs(outputs),
        inputs(inputs),
        rows(rows),
        groups((inputs + kGroup - 1) / kGroup),
        deviation(deviation) {
    std::mt19937_64 random(1);
    const auto codes = [&](int bits) {
      std::vector<uint8_t> plane(static_cast<size_t>(outputs * groups * kGroup * bits / 8));
      for (uint8_t& byte : plane) byte = static_cast<uint8_t>(random());
      return plane;
    };
    index = codes(4);
    high = codes(deviation);
    words.resize(static_cast<size_t>(outputs * groups));
    for (uint16_t& word : words) word = static_cast<uint16_t>(15 << 10 | (random() & 0x3FF));
    x.resize(static_cast<size_t>(rows * inputs));  // 1 to 2, and their negatives
    for (uint16_t& value : x) value = static_cast<uint16_t>(0x3F80 | (random() & 0x807F));
  }

  size_t bytes() const { return index.size() + high.size() + words.size() * 2; }

  double weight(int64_t row, int64_t column) const {
    const auto at = static_cast<size_t>(row * groups * kGroup + column);
    double p = (index[at / 2] >> at % 2 * 4 & 15) - 7;
    if (deviation > 0) {
      const size_t each = static_cast<size_t>(8 / deviation);
      const int low =
          high[at / each] >> at % each * static_cast<size_t>(deviation) & ((1 << deviation) - 1);
      p += (low + 0.5) / (1 << deviation) - 0.5;
    }
    const uint16_t word = words[static_cast<size_t>(row * groups + column / kGroup)];
    const double level =
        kLines[word & 7] * (p / 8) + kBends[word & 7] * (p / 8) * (p / 8) * (p / 8);
    return level * from_half(static_cast<uint16_t>(word & ~7)) * std::ldexp(1.0, kExponent);
  }

  double error(const std::vector<uint16_t>& found) const {
    std::mt19937_64 random(2);
    double worst = 0;
    for (int i = 0; i < 40; i++) {
      const auto row = i == 0 ? outputs - 1 : static_cast<int64_t>(random()) & INT64_MAX;
      const int64_t n = row % outputs;
      for (int64_t m = 0; m < rows; m++) {
        double sum = 0, squares = 0;
        for (int64_t k = 0; k < inputs; k++) {
          const double term = weight(n, k) * from_brain(x[static_cast<size_t>(m * inputs + k)]);
          sum += term;
          squares += term * term;
        }
        const double off = from_brain(found[static_cast<size_t>(m * outputs + n)]) - sum;
        const double part = std::abs(off) / (std::sqrt(squares) + std::abs(sum));
        if (!(part <= worst)) worst = part;  // NaN, too
      }
    }
    return worst;
  }
};

// By whichever kernel takes it; false if none does.
bool multiply_any(const ProductTask& task, void* workspace, cudaStream_t stream) {
  if (multiplies(task)) {
    multiply(task, stream);
  } else if (multiplies_many(task)) {
    multiply_many(task, workspace, stream);
  } else if (multiplies_few(task)) {
    multiply_few(task, workspace, stream);
  } else {
    return false;
  }
  return true;
}

int64_t workspace_of(const ProductTask& task) {
  if (multiplies(task)) return 0;
  if (multiplies_many(task)) return many_workspace(task);
  return multiplies_few(task) ? few_workspace(task) : 0;
}

// The median, in microseconds, of a call.
double time_calls(const std::vector<ProductTask>& tasks, void* workspace, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t calls;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (const ProductTask& task : tasks) multiply_any(task, workspace, stream);
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&calls, graph, 0));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int round = 0; round < kRounds; round++) {
    float ms = 0;
    check(cudaEventRecord(begin, stream));
    check(cudaGraphLaunch(calls, stream));
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    check(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms * 1000 / static_cast<float>(tasks.size()));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void run(const Operands& of) {
  const size_t copies = std::max<size_t>(3, kTogether / of.bytes() + 1);
  std::vector<uint16_t> found(static_cast<size_t>(of.rows * of.outputs), 0xFFFF);  // NaN
  const uint16_t* const x = on_device(of.x);
  uint16_t* const out = on_device(found);
  std::vector<ProductTask> tasks;
  for (size_t i = 0; i < copies; i++) {
    ProductTask task{};
    task.layout = {of.inputs, 4, of.deviation, kGroup, GridName::kPhi, kExponent};
    task.planes = {on_device(of.index), of.deviation > 0 ? on_device(of.high) : nullptr, nullptr,
                   on_device(of.words)};
    task.x = x;
    task.out = out;
    task.dtype = Dtype::kBFloat16;
    task.m = of.rows;
    task.out_features = of.outputs;
    tasks.push_back(task);
  }
  void* workspace = nullptr;
  check(cudaMalloc(&workspace, static_cast<size_t>(workspace_of(tasks[0])) + 256));
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  if (!multiply_any(tasks[0], workspace, stream)) return void(std::printf("no kernel takes it\n"));
  check(cudaStreamSynchronize(stream));
  check(cudaMemcpy(found.data(), out, found.size() * 2, cudaMemcpyDeviceToHost));
  const double us = time_calls(tasks, workspace, stream);
  std::printf("%lld x %lld, %lld rows, %d deviation bits: %.2f us, %.2f TB/s, error %.1e\n",
              static_cast<long long>(of.outputs), static_cast<long long>(of.inputs),
              static_cast<long long>(of.rows), of.deviation, us,
              static_cast<double>(of.bytes()) / us / 1e6, of.error(found));
}

}  // namespace

int main(int count, char** given) {
  long long outputs = 0, inputs = 0;
  if (count != 4 || std::sscanf(given[1], "%lldx%lld", &outputs, &inputs) != 2) {
    std::printf("usage: cuda_product OUTPUTSxINPUTS ROWS DEVIATION_BITS\n");
    return 1;
  }
  run(Operands(outputs, inputs, std::atoll(given[2]), std::atoi(given[3])));
}
