package bench

import (
	"math"
	"math/rand/v2"
)

// maxSkew bounds the exponent: beyond it all draws are of one key.
const maxSkew = 10

// zipf draws numbers from 0 to n-1, number i with a weight of (i+1)^-s, by
// rejection-inversion (W. Hörmann, G. Derflinger, "Rejection-inversion to
// generate variates from monotone discrete distributions", 1996). It needs no
// table and accepts any s above 0, also below 1, unlike math/rand. It is read
// only.
type zipf struct {
	s, n          float64
	first, last   float64 // hIntegral at 1.5, less 1, and at n+0.5
	alwaysTakenTo float64
}

func newZipf(s float64, n int) *zipf {
	z := &zipf{s: s, n: float64(n)}
	z.first, z.last = z.integral(1.5)-1, z.integral(z.n+0.5)
	z.alwaysTakenTo = 2 - z.inverse(z.integral(2.5)-z.weight(2))
	return z
}

func (z *zipf) draw(rng *rand.Rand) int {
	for {
		u := z.last + rng.Float64()*(z.first-z.last)
		x := z.inverse(u)
		k := math.Min(math.Max(math.Floor(x+0.5), 1), z.n)
		if k-x <= z.alwaysTakenTo || u >= z.integral(k+0.5)-z.weight(k) {
			return int(k) - 1
		}
	}
}

func (z *zipf) weight(x float64) float64 { return math.Exp(-z.s * math.Log(x)) }

// integral returns the integral of the weight from 1 to x.
func (z *zipf) integral(x float64) float64 {
	log := math.Log(x)
	return log * expm1Over((1-z.s)*log)
}

// inverse is the inverse of integral.
func (z *zipf) inverse(x float64) float64 {
	t := math.Max(x*(1-z.s), -1)
	return math.Exp(x * log1pOver(t))
}

// expm1Over returns (e^x - 1)/x, also near 0.
func expm1Over(x float64) float64 {
	if math.Abs(x) > 1e-8 {
		return math.Expm1(x) / x
	}
	return 1 + x/2
}

// log1pOver returns log(1+x)/x, also near 0.
func log1pOver(x float64) float64 {
	if math.Abs(x) > 1e-8 {
		return math.Log1p(x) / x
	}
	return 1 - x/2
}
