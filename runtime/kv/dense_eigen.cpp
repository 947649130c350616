#include <Eigen/Eigenvalues>

#include "runtime/kv/dense.h"

namespace foretoken::dense {

Eigensystem eigensystem(const Matrix& symmetric) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(symmetric);
  return {solver.eigenvalues(), solver.eigenvectors()};
}

}  // namespace foretoken::dense
