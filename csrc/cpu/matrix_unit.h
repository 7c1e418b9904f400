// Whether this CPU has AMX with bf16 and int8, and the system lets this process use it.
#pragma once

namespace phiquant::cpu {

// Asks the system once; it grants tiles, 8 KB a thread, to processes that ask.
bool has_matrix_unit();

}  // namespace phiquant::cpu
