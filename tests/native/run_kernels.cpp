// Runs kernels without torch, for processors that the tests reach by emulation only: reads tasks
// from standard input until it ends, and writes the result of each to standard output. Numbers are
// int64, arrays are their size in bytes (-1: there is none) and these; tests/native/driver.py is
// the other side. With the argument "flush" the program flushes denormals, as torch's users may.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/mode.h"
#include "../../csrc/cpu/tables.h"

#if defined(PHIQUANT_ONLY)  // these kernels alone are linked
namespace phiquant::cpu {
namespace PHIQUANT_ONLY {
const Kernels& kernels();
}
const Kernels& kernels() { return PHIQUANT_ONLY::kernels(); }
}  // namespace phiquant::cpu
#endif

namespace {

using namespace phiquant;
using namespace phiquant::cpu;

enum class Kind : int64_t { kName, kEncode, kRemainder, kDecode, kLinear };

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "run_kernels: %s\n", what);
  std::exit(1);
}

void read_bytes(void* to, size_t bytes) {
  if (bytes != 0 && std::fread(to, 1, bytes, stdin) != bytes) fail("the task ends too early");
}
int64_t read_number() {
  int64_t value;
  read_bytes(&value, sizeof value);
  return value;
}

// An array of its own allocation, so that sanitizers see what is read beyond it.
struct Array {
  std::optional<std::vector<uint8_t>> bytes;

  Array() {
    const int64_t size = read_number();
    if (size < 0) return;
    bytes.emplace(static_cast<size_t>(size));
    read_bytes(bytes->data(), bytes->size());
  }
  template <class T>
  const T* as() const {
    return bytes ? reinterpret_cast<const T*>(bytes->data()) : nullptr;
  }
};

template <class T>
void write_array(const std::vector<T>& values) {
  const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(T));
  std::fwrite(&bytes, sizeof bytes, 1, stdout);
  if (bytes != 0) std::fwrite(values.data(), 1, static_cast<size_t>(bytes), stdout);
}
void write_status(Status status) {
  const int64_t number = static_cast<int64_t>(status);
  std::fwrite(&number, sizeof number, 1, stdout);
}

std::vector<uint8_t> room(int64_t bytes) {
  return std::vector<uint8_t>(static_cast<size_t>(bytes));
}

Layout read_layout() {
  Layout layout;
  layout.columns = read_number();
  layout.index_bits = static_cast<int32_t>(read_number());
  layout.deviation_bits = static_cast<int32_t>(read_number());
  layout.group_size = static_cast<int32_t>(read_number());
  layout.grid = static_cast<GridName>(read_number());
  layout.exponent = static_cast<int32_t>(read_number());
  return layout;
}

struct GivenPlanes {
  Array index, deviation, low, scale;
  Planes pointers() const {
    return {index.as<uint8_t>(), deviation.as<uint8_t>(), low.as<uint8_t>(), scale.as<int16_t>()};
  }
};

const float* levels_of(const Layout& layout) {
  if (layout.grid == GridName::kPhi) return nullptr;
  return golden_levels(layout.index_bits, layout.deviation_bits).data();
}
const float* edges_of(const Layout& layout) {
  return layout.grid == GridName::kPhi ? nullptr : golden_edges(layout).data();
}

void encode(const Layout& layout, int64_t rows, Dtype dtype) {
  const Fit fit = static_cast<Fit>(read_number());
  const int64_t price = read_number();  // below 0: no remainders
  const Array weight, importance;
  const SearchTables tables(layout, price >= 0 && fit == Fit::kJoint);
  std::vector<uint8_t> index = room(rows * row_bytes(layout, layout.index_bits));
  std::vector<uint8_t> high = room(rows * row_bytes(layout, high_bits(layout)));
  std::vector<uint8_t> low = room(rows * row_bytes(layout, low_bits(layout)));
  std::vector<int16_t> scale(static_cast<size_t>(rows * groups_of(layout)));
  const EncodeTask task{layout,
                        fit,
                        dtype,
                        weight.as<uint8_t>(),
                        importance.as<float>(),
                        tables.inverse.data(),
                        tables.scan,
                        tables.levels,
                        tables.index_levels,
                        tables.edges,
                        tables.ends.data(),
                        price < 0 ? nullptr : thirty_second_powers(),
                        static_cast<int32_t>(price),
                        price >= 0,
                        index.data(),
                        high.data(),
                        low.data(),
                        scale.data()};
  {
    const DenormalsKept denormals;
    write_status(kernels().encode(task, 0, rows));
  }
  write_array(index);
  write_array(high);
  write_array(low);
  write_array(scale);
}

int64_t sum_before(std::vector<int64_t>* values) {
  int64_t sum = 0;
  for (int64_t& value : *values) {
    sum += value;
    value = sum - value;
  }
  return sum;
}

void encode_remainder(const Layout& layout, int64_t rows, Dtype stored) {
  const GivenPlanes planes;
  const Array weight;
  std::vector<int64_t> begins(static_cast<size_t>(rows * blocks_of(layout)));
  std::vector<int64_t> first(static_cast<size_t>(rows));
  RemainderTask task{
      layout,        planes.pointers(), stored,        edges_of(layout), weight.as<uint8_t>(),
      begins.data(), first.data(),      begins.data(), nullptr,          first.data(),
      nullptr};
  const DenormalsKept denormals;
  Status status = kernels().measure(task, 0, rows);
  std::vector<uint8_t> payload = room(sum_before(&begins) + kPadding);
  std::vector<int64_t> exceptions(static_cast<size_t>(2 * sum_before(&first)));
  task.payload = payload.data();
  task.exceptions = exceptions.data();
  if (status == Status::kOk) status = kernels().write(task, 0, rows);
  write_status(status);
  write_array(payload);
  write_array(begins);
  write_array(exceptions);
}

void decode(const Layout& layout, int64_t rows, Dtype dtype) {
  const Dtype stored = static_cast<Dtype>(read_number());
  const GivenPlanes planes;
  const Array payload, offsets, starts;
  const int64_t size = payload.bytes ? static_cast<int64_t>(payload.bytes->size()) : 0;
  const Remainder remainder{payload.as<uint8_t>(),
                            size,
                            offsets.as<uint16_t>(),
                            starts.as<int64_t>(),
                            rows * blocks_of(layout),
                            0,
                            true,
                            stored,
                            edges_of(layout)};
  std::vector<uint8_t> out = room(rows * layout.columns * size_of(dtype));
  int64_t bad_block = -1;
  const DecodeTask task{layout,     planes.pointers(), nullptr,   levels_of(layout), dtype,
                        out.data(), layout.columns,    remainder, &bad_block};
  const DenormalsKept denormals;
  write_status(kernels().decode(task, 0, rows));
  write_array(out);
}

void linear(const Layout& layout, int64_t rows, Dtype dtype) {
  const int64_t m = read_number();
  const GivenPlanes planes;
  const Array x, bias;
  if (m > kernels().fused_rows(layout)) fail("more rows of x than `fused` takes");
  std::vector<float> prepared(static_cast<size_t>(m * groups_of(layout) * layout.group_size));
  std::vector<uint8_t> out = room(m * rows * size_of(dtype));
  const DenormalsKept denormals;
  kernels().prepare(layout, dtype, x.as<uint8_t>(), m, prepared.data());
  const FusedTask task{layout,
                       planes.pointers(),
                       levels_of(layout),
                       prepared.data(),
                       bias.as<float>(),
                       dtype,
                       out.data(),
                       m,
                       rows};
  write_status(kernels().fused(task, 0, rows));
  write_array(out);
}

void run(Kind kind) {
  if (kind == Kind::kName) {
    const char* name = kernels().name;
    write_status(Status::kOk);
    return write_array(std::vector<char>(name, name + std::strlen(name)));
  }
  const Layout layout = read_layout();
  const int64_t rows = read_number();
  const Dtype dtype = static_cast<Dtype>(read_number());
  switch (kind) {
    case Kind::kEncode:
      return encode(layout, rows, dtype);
    case Kind::kRemainder:
      return encode_remainder(layout, rows, dtype);
    case Kind::kDecode:
      return decode(layout, rows, dtype);
    case Kind::kLinear:
      return linear(layout, rows, dtype);
    default:
      fail("no such kind of task");
  }
}

void flush_denormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(uint64_t{1} << 24));
#else
  fail("no way to flush denormals is known here");
#endif
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::strcmp(arguments[1], "flush") == 0) flush_denormals();
  int64_t kind;
  while (std::fread(&kind, sizeof kind, 1, stdin) == 1) run(static_cast<Kind>(kind));
  return std::fflush(stdout) == 0 ? 0 : 1;
}
