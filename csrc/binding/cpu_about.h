// torch.ops.phiquant.isa: what the choice of kernels was made from, as JSON, for `phiquant doctor`.
#pragma once

#include "cpu_linear.h"

namespace phiquant::cpu {

inline std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    if (static_cast<unsigned char>(c) >= ' ') result += c;
  }
  return result + "\"";
}

inline std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

inline std::string features_text() {
  std::vector<std::string> parts;
  for (const Feature& feature : features()) {
    parts.push_back(quoted(feature.name) + (feature.present ? ": true" : ": false"));
  }
  return "{" + joined(parts) + "}";
}

inline std::string sets_text() {
  std::vector<std::string> parts;
  for (const InstructionSet& set : instruction_sets()) {
    std::vector<std::string> missing;
    for (const std::string& name : set.missing) missing.push_back(quoted(name));
    parts.push_back("{\"name\": " + quoted(set.name) + ", \"missing\": [" + joined(missing) + "]}");
  }
  return "[" + joined(parts) + "]";
}

// The most rows of x that are multiplied with weights decoded in registers, by deviation bits.
inline std::string fused_text() {
  std::vector<std::string> parts;
  for (const int bits : {0, 2, 4, 8}) {
    const Layout layout = make_layout(4096, 4, bits, 64, "phi", 0);
    parts.push_back(quoted(std::to_string(bits)) + ": " +
                    std::to_string(kernels().fused_rows(layout)));
  }
  return "{" + joined(parts) + "}";
}

// Which rows of bf16 meet codes in a form of their own, [least, most]; null where none do.
inline std::string codes_text(const CodeKernels* way) {
  if (way == nullptr) return "null";
  const Layout layout = make_layout(4096, 4, 4, 64, "phi", 0);
  int64_t least = 1;
  while (!way->takes(layout, least, false)) least++;
  int64_t most = least;
  while (way->takes(layout, most + 1, false)) most++;
  return "{\"least\": " + std::to_string(least) + ", \"most\": " + std::to_string(most) + "}";
}

inline std::string isa() {
  std::string text = "{\"features\": " + features_text() + ", \"sets\": " + sets_text();
  try {
    text += ", \"chosen\": " + quoted(kernels().name) + ", \"fused_rows\": " + fused_text() +
            ", \"few_for_matrix_unit\": " + std::to_string(kFewForMatrixUnit) +
            ", \"integers\": " + codes_text(kernels().integers) +
            ", \"tiles\": " + codes_text(kernels().tiles);
  } catch (const std::invalid_argument& error) {  // PHIQUANT_ISA names none of them
    text += ", \"error\": " + quoted(error.what());
  }
  return text + "}";
}

}  // namespace phiquant::cpu
