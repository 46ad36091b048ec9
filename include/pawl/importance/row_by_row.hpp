#pragma once

#include <algorithm>
#include <string_view>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// The shape of the tensor whose gradient travels along an edge of autograd's graph.
inline auto shape_of(torch::autograd::Edge const& edge) {
  return edge.function->input_metadata(edge.input_nr).shape_as_dim_vector();
}

/// Whether row i of what an operation results in depends on row i of its operands alone, given that
/// all have n rows. Of operations that are not listed here nothing is known. A sum, a mean or a pad
/// along the rows that leaves n of them would be taken for one along another dimension.
inline bool acts_row_by_row(torch::autograd::Node const& node) {
  static constexpr std::string_view of_any_shape[] = {"AbsBackward0",
                                                      "AdaptiveAvgPool2DBackward0",
                                                      "AddBackward1",
                                                      "AliasBackward0",
                                                      "AvgPool2DBackward0",
                                                      "CatBackward0",
                                                      "ClampBackward1",
                                                      "ClampMaxBackward0",
                                                      "ClampMinBackward0",
                                                      "CloneBackward0",
                                                      "ConstantPadNdBackward0",
                                                      "DivBackward1",
                                                      "EluBackward0",
                                                      "ExpBackward0",
                                                      "GeluBackward0",
                                                      "HardswishBackward0",
                                                      "HardtanhBackward0",
                                                      "LeakyReluBackward0",
                                                      "LogBackward0",
                                                      "LogSigmoidBackward0",
                                                      "MaxPool2DWithIndicesBackward0",
                                                      "MeanBackward1",
                                                      "MishBackward0",
                                                      "MulBackward1",
                                                      "NegBackward0",
                                                      "PowBackward0",
                                                      "ReluBackward0",
                                                      "ReshapeAliasBackward0",
                                                      "SigmoidBackward0",
                                                      "SiluBackward0",
                                                      "SliceBackward0",
                                                      "SoftplusBackward0",
                                                      "SqrtBackward0",
                                                      "SqueezeBackward1",
                                                      "SubBackward1",
                                                      "SumBackward1",
                                                      "TanhBackward0",
                                                      "UnsafeViewBackward0",
                                                      "UnsqueezeBackward0",
                                                      "ViewBackward0"};
  // Broadcasting could pair rows with columns; between operands of one rank it cannot.
  static constexpr std::string_view of_one_rank[] = {
      "AddBackward0", "DivBackward0", "MaskedFillBackward0", "MulBackward0", "SubBackward0"};
  auto const among = [name = node.name()](c10::ArrayRef<std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (among(of_any_shape)) return true;
  if (!among(of_one_rank)) return false;
  auto const rank = node.input_metadata(0).shape_as_dim_vector().size();
  auto const& operands = node.next_edges();
  return std::all_of(operands.begin(), operands.end(), [rank](auto const& operand) {
    return !operand.is_valid() || shape_of(operand).size() == rank;
  });
}

}  // namespace v0
}  // namespace pawl
