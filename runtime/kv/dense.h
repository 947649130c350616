// Products and eigenvectors for the calibrator. Eigen's templates keep a compiler busy for long,
// and anew for each type of operand: so these few are compiled once, in files of their own
// (dense_products.cpp, dense_eigen.cpp), and nobody else multiplies or decomposes with Eigen.
#pragma once

#include <Eigen/Core>

namespace foretoken::dense {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;
using FloatRows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix product(const Matrix& a, const Matrix& b);
FloatRows row_product(const FloatRows& a, const FloatRows& b);
FloatRows product_transposed(const FloatRows& a, const FloatRows& b);  // a b^T
Eigen::MatrixXf gram(const FloatRows& a, const FloatRows& b);          // a^T b

struct Eigensystem {
  Vector values;   // ascending
  Matrix vectors;  // a column each
};
Eigensystem eigensystem(const Matrix& symmetric);

}  // namespace foretoken::dense
