package bench

import (
	"slices"
	"testing"
)

func TestAxisMarksHoldTheirRange(t *testing.T) {
	for _, test := range []struct {
		low, high float64 // logarithms
		want      []float64
	}{
		{0.1, 1.2, []float64{1, 2, 5, 10, 20}},
		{2, 2, []float64{100, 200}},
		{-1.2, -0.5, []float64{0.05, 0.1, 0.2, 0.5}},
	} {
		got := axisMarks(test.low, test.high)
		if !slices.EqualFunc(got, test.want, func(a, b float64) bool { return a/b > 0.999 && a/b < 1.001 }) {
			t.Errorf("from 10^%v to 10^%v: %v, want %v", test.low, test.high, got, test.want)
		}
	}
}

func TestAxisLabelsAreShort(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.05: "0.05", 5: "5", 256: "256", 20_000: "20k", 2_500_000: "2.5M"} {
		if got := short(v); got != want {
			t.Errorf("%v is written %q, want %q", v, got, want)
		}
	}
}

func TestAPlotOfNothingIsOne(t *testing.T) {
	r := &Report{Results: []Result{{Name: "cantus", InFlight: 1}}}
	if len(r.plot()) == 0 {
		t.Error("no picture")
	}
}
