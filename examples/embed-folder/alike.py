"""Which text is nearest to each: the cosine of the angle between their vectors."""

import numpy as np
import pyarrow.parquet as pq

table = pq.read_table("vectors.parquet")
vectors = np.array(table["embedding"].to_pylist())
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
cosines = vectors @ vectors.T
np.fill_diagonal(cosines, -1)
names = table["file"].to_pylist()
for name, row in zip(names, cosines, strict=True):
    print(f"{name} is nearest to {names[row.argmax()]} ({row.max():.3f})")
