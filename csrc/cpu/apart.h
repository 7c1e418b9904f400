// How many rows of a weight are read side by side, in as many parts of a range of rows. The
// prefetchers of a core end at a page's border, so one that follows a single stream waits at each:
// it read 8.1 GB/s, and 11.9 from four streams in different pages (docs/design-notes.md).
#pragma once

namespace phiquant::cpu {

inline constexpr int kApart = 4;

}  // namespace phiquant::cpu
