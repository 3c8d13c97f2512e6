// The kernel table for this instruction set: the shared sources over its lanes.
#include "tokenvm/lanes_avx512.hpp"
// The lanes come first.
#include "tokenvm/lane_math.hpp"
// Then what is built on them.
#include "tokenvm/code_lanes.hpp"
#include "tokenvm/dot.hpp"
#include "tokenvm/lane_attention.hpp"
#include "tokenvm/lane_bitpack.hpp"
#include "tokenvm/lane_quantise.hpp"
#include "tokenvm/lane_rowwise.hpp"
#include "tokenvm/lane_epilogue.hpp"
#include "tokenvm/lane_linear.hpp"
#include "tokenvm/lane_table.hpp"

namespace tokenvm {

const Kernels& avx512_kernels() {
  static constexpr Kernels table = lane_kernels("avx512");
  return table;
}

}  // namespace tokenvm
