package bench

import (
	"math"
	"testing"
)

// TestZipfDrawsByWeight compares the frequency of numbers with their weights,
// for exponents below, at and above 1.
func TestZipfDrawsByWeight(t *testing.T) {
	const n, draws = 20, 200_000
	for _, s := range []float64{0.5, 0.99, 1, 2} {
		z, rng := newZipf(s, n), newRand(1)
		var seen [n]int
		for range draws {
			seen[z.draw(rng)]++
		}
		sum := 0.0
		for i := range n {
			sum += math.Pow(float64(i+1), -s)
		}
		for i := range n {
			want := draws * math.Pow(float64(i+1), -s) / sum
			if diff := math.Abs(float64(seen[i]) - want); diff > 6*math.Sqrt(want)+1 {
				t.Errorf("skew %v: key %d drawn %d times, want about %.0f", s, i, seen[i], want)
			}
		}
	}
}

func TestZipfOfOneKey(t *testing.T) {
	if got := newZipf(1.2, 1).draw(newRand(1)); got != 0 {
		t.Errorf("key %d, want 0", got)
	}
}
