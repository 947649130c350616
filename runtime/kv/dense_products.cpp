#include "runtime/kv/dense.h"

namespace foretoken::dense {

Matrix product(const Matrix& a, const Matrix& b) { return a * b; }
FloatRows row_product(const FloatRows& a, const FloatRows& b) { return a * b; }
FloatRows product_transposed(const FloatRows& a, const FloatRows& b) { return a * b.transpose(); }
Eigen::MatrixXf gram(const FloatRows& a, const FloatRows& b) { return a.transpose() * b; }

}  // namespace foretoken::dense
