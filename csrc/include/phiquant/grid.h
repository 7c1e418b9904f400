// The phi-grid's constants: docs/format.md lists them, phiquant/grid.py says where they come from.
// Torch-free; shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

namespace phiquant {

inline constexpr int kBendCount = 8;

// fl32(B) and fl32(1 - B). Both are literals because 1 - fl32(B) is not fl32(1 - B).
inline constexpr float kBends[kBendCount] = {
    0x1.2acc96p-3f, 0x1.e3779cp-3f, 0x1.3c6ef4p-2f, 0x1.87221ap-2f,
    0x1.c032e2p-2f, 0x1.000000p-1f, 0x1.1fe690p-1f, 0x1.d1d53ep-1f,
};
inline constexpr float kLines[kBendCount] = {
    0x1.b54cdap-1f, 0x1.87221ap-1f, 0x1.61c886p-1f, 0x1.3c6ef4p-1f,
    0x1.1fe690p-1f, 0x1.000000p-1f, 0x1.c032e2p-2f, 0x1.71560ap-4f,
};

// fl32(sinh(h/2 * ln phi)) for h = 0..66: the "golden" ladder at integers and half-integers.
inline constexpr float kLadder[67] = {
    0x0.0p+0f,       0x1.f18774p-3f,  0x1.000000p-1f,  0x1.92826ep-1f,  0x1.1e377ap+0f,
    0x1.83d402p+0f,  0x1.000000p+1f,  0x1.4cfa4ap+1f,  0x1.ad5336p+1f,  0x1.1352c6p+2f,
    0x1.600000p+2f,  0x1.c12722p+2f,  0x1.1e377ap+3f,  0x1.6c81aap+3f,  0x1.d00000p+3f,
    0x1.273e10p+4f,  0x1.77a8d0p+4f,  0x1.ddedccp+4f,  0x1.300000p+5f,  0x1.82b834p+5f,
    0x1.ebef5ap+5f,  0x1.38e224p+6f,  0x1.8e0000p+6f,  0x1.fa44cap+6f,  0x1.41fe68p+7f,
    0x1.99957cp+7f,  0x1.048000p+8f,  0x1.4b5c90p+8f,  0x1.a57fb2p+8f,  0x1.0c13dap+9f,
    0x1.550000p+9f,  0x1.b1c240p+9f,  0x1.13dff8p+10f, 0x1.5eeb16p+10f, 0x1.be6000p+10f,
    0x1.1be61ep+11f, 0x1.691ffep+11f, 0x1.cb5baap+11f, 0x1.242800p+12f, 0x1.73a0e4p+12f,
    0x1.d8b800p+12f, 0x1.2ca75ep+13f, 0x1.7e7000p+13f, 0x1.e677d0p+13f, 0x1.356600p+14f,
    0x1.898f96p+14f, 0x1.f49e00p+14f, 0x1.3e65c0p+15f, 0x1.950200p+15f, 0x1.0196c6p+16f,
    0x1.47a880p+16f, 0x1.a0c9a4p+16f, 0x1.0914c0p+17f, 0x1.513036p+17f, 0x1.ace900p+17f,
    0x1.10ca84p+18f, 0x1.5afee0p+18f, 0x1.b9629ep+18f, 0x1.18b9b0p+19f, 0x1.651692p+19f,
    0x1.c63920p+19f, 0x1.20e3f0p+20f, 0x1.6f7968p+20f, 0x1.d36f38p+20f, 0x1.294afcp+21f,
    0x1.7a2994p+21f, 0x1.e107b0p+21f,
};

}  // namespace phiquant
