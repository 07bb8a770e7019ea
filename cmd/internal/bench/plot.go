package bench

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
)

// The plot's dimensions, in pixels.
const (
	plotWidth, plotHeight = 960, 600
	plotLeft, plotTop     = 80, 70
	plotRight, plotBottom = 30, 64
	legendLine            = 18
)

// palette has colors that color-blind readers can distinguish (M. Okabe, K.
// Ito).
var palette = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

// series is one system's results in a sweep.
type series struct {
	name   string
	color  string
	points []*Result
}

// plot draws throughput against latency as an SVG: for each system a solid line
// through the medians and a dashed one through the 99th percentiles, with the
// load level at each point.
func (r *Report) plot() []byte {
	all := r.series()
	x, y := r.axes()
	var b bytes.Buffer
	legend := len(all)*legendLine + 8
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		plotWidth, plotHeight+legend, plotWidth, plotHeight+legend)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, plotHeight+legend)
	text(&b, plotLeft, 24, "start", "#000", 15, "Latency by throughput")
	text(&b, plotLeft, 44, "start", "#444", 12, r.headline())
	text(&b, plotLeft, 60, "start", "#444", 12, "solid: median, dashed: 99th percentile; the number at a point is "+r.pushed())
	y.grid(func(at float64) { horizontal(&b, at) }, func(at float64, label string) {
		text(&b, plotLeft-8, at+4, "end", "#444", 12, label)
	})
	x.grid(func(at float64) { vertical(&b, at) }, func(at float64, label string) {
		text(&b, at, plotHeight-plotBottom+18, "middle", "#444", 12, label)
	})
	text(&b, (plotLeft+plotWidth-plotRight)/2, plotHeight-plotBottom+40, "middle", "#000", 12, "transactions a second")
	fmt.Fprintf(&b, `<g transform="translate(22 %d) rotate(-90)">`, (plotTop+plotHeight-plotBottom)/2)
	text(&b, 0, 0, "middle", "#000", 12, "milliseconds")
	b.WriteString("</g>\n")
	for _, s := range all {
		s.lines(&b, x, y)
	}
	for i, s := range all {
		s.marks(&b, x, y)
		at := float64(plotHeight + i*legendLine)
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="%s" stroke-width="3"/>`+"\n", plotLeft, at, plotLeft+24, at, s.color)
		text(&b, plotLeft+32, at+4, "start", "#000", 12, s.name+": "+s.points[0].Client)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// pushed describes the numbers at the points.
func (r *Report) pushed() string {
	if len(r.Results) > 0 && r.Results[0].Asked > 0 {
		return "requests a second that fell due"
	}
	return "requests in flight on a connection"
}

func (r *Report) series() []*series {
	var all []*series
	for i := range r.Results {
		res := &r.Results[i]
		if len(all) == 0 || all[len(all)-1].name != res.Name {
			all = append(all, &series{name: res.Name, color: palette[len(all)%len(palette)]})
		}
		s := all[len(all)-1]
		s.points = append(s.points, res)
	}
	return all
}

// axis is a logarithmic axis.
type axis struct {
	low, high float64 // powers of ten
	from, to  float64 // pixels
}

// axes returns a horizontal axis for all rates and a vertical one for all
// latencies.
func (r *Report) axes() (x, y axis) {
	x = axis{math.Inf(1), math.Inf(-1), plotLeft, plotWidth - plotRight}
	y = axis{math.Inf(1), math.Inf(-1), plotHeight - plotBottom, plotTop}
	for _, res := range r.Results {
		x.extendTo(res.Rate.Median)
		y.extendTo(res.P50)
		y.extendTo(res.P99)
	}
	x.round()
	y.round()
	return x, y
}

// extendTo extends the axis to a value above 0.
func (a *axis) extendTo(v float64) {
	if v > 0 {
		a.low, a.high = min(a.low, math.Log10(v)), max(a.high, math.Log10(v))
	}
}

// round extends the ends to 1, 2 or 5 times a power of ten.
func (a *axis) round() {
	if a.low > a.high { // nothing to show
		a.low, a.high = 0, 1
	}
	marks := axisMarks(a.low, a.high)
	a.low, a.high = math.Log10(marks[0]), math.Log10(marks[len(marks)-1])
}

// axisMarks returns the values 1, 2 and 5 times a power of ten, from the last
// at or below low to the first above high, which are logarithms.
func axisMarks(low, high float64) []float64 {
	var marks []float64
	for e := math.Floor(low); ; e++ {
		for _, m := range []float64{1, 2, 5} {
			v := m * math.Pow(10, e)
			if math.Log10(v) <= low {
				marks = marks[:0]
			}
			if marks = append(marks, v); math.Log10(v) > high {
				return marks
			}
		}
	}
}

func (a axis) at(v float64) float64 {
	share := (math.Log10(v) - a.low) / (a.high - a.low)
	return a.from + min(max(share, 0), 1)*(a.to-a.from)
}

// grid draws a line and a label at each mark.
func (a axis) grid(line func(at float64), label func(at float64, text string)) {
	for _, v := range axisMarks(a.low+1e-9, a.high-1e-9) {
		line(a.at(v))
		label(a.at(v), short(v))
	}
}

// short writes a number as 0.5, 20, 5k or 2M.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", round3(v/1e6))
	case v >= 1e3:
		return fmt.Sprintf("%gk", round3(v/1e3))
	}
	return fmt.Sprintf("%g", round3(v))
}

// round3 rounds to three significant digits, which removes floating-point
// noise.
func round3(v float64) float64 {
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 3, 64), 64)
	return rounded
}

func horizontal(b *bytes.Buffer, at float64) {
	fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`+"\n", plotLeft, at, plotWidth-plotRight, at)
}

func vertical(b *bytes.Buffer, at float64) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`+"\n", at, plotTop, at, plotHeight-plotBottom)
}

func text(b *bytes.Buffer, x, y float64, anchor, color string, size int, s string) {
	// The white outline keeps it readable where lines cross it.
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" font-size="%d" stroke="#fff" stroke-width="3" paint-order="stroke">`,
		x, y, anchor, color, size)
	_ = xml.EscapeText(b, []byte(s)) // writing to a buffer never fails
	b.WriteString("</text>\n")
}

// lines draws both lines.
func (s *series) lines(b *bytes.Buffer, x, y axis) {
	for _, line := range []struct {
		dash  string
		value func(*Result) float64
	}{
		{"", func(r *Result) float64 { return r.P50 }},
		{` stroke-dasharray="5 4"`, func(r *Result) float64 { return r.P99 }},
	} {
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="2"%s points="`, s.color, line.dash)
		for _, r := range s.points {
			if line.value(r) > 0 && r.Rate.Median > 0 {
				fmt.Fprintf(b, "%.1f,%.1f ", x.at(r.Rate.Median), y.at(line.value(r)))
			}
		}
		b.WriteString("\"/>\n")
	}
}

// marks draws the points and their labels.
func (s *series) marks(b *bytes.Buffer, x, y axis) {
	for _, r := range s.points {
		if r.P50 <= 0 || r.Rate.Median <= 0 {
			continue
		}
		px, py := x.at(r.Rate.Median), y.at(r.P50)
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", px, py, s.color)
		text(b, px, py+16, "middle", s.color, 11, s.push(r))
	}
}

// push returns the load level of a result.
func (*series) push(r *Result) string {
	if r.Asked > 0 {
		return short(r.Asked)
	}
	return short(float64(r.InFlight))
}
