// Whether this CPU has AMX with bf16 and int8, and the system lets this process use it.
#pragma once

// Older compilers have no such instructions, other systems no way to ask for them.
#if defined(__x86_64__) && defined(__linux__)
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define PHIQUANT_HAS_AMX
#endif
#endif

namespace phiquant::cpu {

// Asks the system once; it grants tiles, 8 KB a thread, to processes that ask.
bool has_matrix_unit();

}  // namespace phiquant::cpu
