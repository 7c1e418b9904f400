#include "matrix_unit.h"

#if defined(PHIQUANT_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace phiquant::cpu {

#if defined(PHIQUANT_HAS_AMX)

namespace {

bool has_instructions() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kVnni = 1u << 11;  // of ecx; there is no CPU with AMX and without it
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBFloat16 | kTile | kInt8;
  return (edx & kAll) == kAll && (ecx & kVnni) != 0;
}

bool is_granted() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

bool has_matrix_unit() {
  static const bool has = has_instructions() && is_granted();
  return has;
}

#else

bool has_matrix_unit() { return false; }

#endif

}  // namespace phiquant::cpu
