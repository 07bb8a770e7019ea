package main

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
)

// The plot's dimensions, in pixels. It has two panels above one axis.
const (
	width, panel      = 720, 190
	left, right       = 76, 24
	top, gap, bottom  = 44, 26, 52
	height            = top + 2*panel + gap + bottom
	rateColor         = "#0072b2"
	p50Color, p99Grey = "#d55e00", "#777777"
)

// curve is a line in a panel.
type curve struct {
	color, name string
	dashed      bool
	below       bool // the labels are below the line
	of          func(Point) float64
}

// draw returns an SVG of the points' throughput and latency, on logarithmic
// scales.
func draw(d dimension, points []Point) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="15">%s</text>`+"\n", left, d.title)
	drawPanel(&b, top, points, curve{rateColor, "appends a second", false, false, func(p Point) float64 { return p.Rate }})
	drawPanel(&b, top+panel+gap, points,
		curve{p50Color, "p50, ms", false, true, func(p Point) float64 { return p.P50 }},
		curve{p99Grey, "p99, ms", true, false, func(p Point) float64 { return p.P99 }})
	for i, p := range points {
		fmt.Fprintf(&b, `<text x="%.0f" y="%d" text-anchor="middle">%s</text>`+"\n", x(i, len(points)), height-bottom+20, grouped(p.Value))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="#555">%s</text>`+"\n", (left+width-right)/2, height-12, d.unit)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// x returns the horizontal position of the i-th of n points.
func x(i, n int) float64 {
	return left + (float64(i)+0.5)*float64(width-left-right)/float64(n)
}

func drawPanel(b *bytes.Buffer, y int, points []Point, curves ...curve) {
	lowest, highest := math.Inf(1), 0.0
	for _, c := range curves {
		for _, p := range points {
			lowest, highest = min(lowest, c.of(p)), max(highest, c.of(p))
		}
	}
	low, high := math.Floor(math.Log10(lowest)), math.Ceil(math.Log10(highest*1.3))
	at := func(v float64) float64 {
		return float64(y) + panel*(high-math.Log10(v))/(high-low)
	}
	for e := low; e <= high; e++ {
		line := at(math.Pow(10, e))
		fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`+"\n", left, line, width-right, line)
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end" fill="#555">%s</text>`+"\n", left-8, line+4, short(math.Pow(10, e)))
	}
	for i, c := range curves {
		dash := ""
		if c.dashed {
			dash = ` stroke-dasharray="5 4"`
		}
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end" fill="%s">%s</text>`+"\n", width-right-i*90, y-6, c.color, c.name)
		b.WriteString(`<polyline fill="none" stroke-width="2" stroke="` + c.color + `"` + dash + ` points="`)
		for j, p := range points {
			fmt.Fprintf(b, "%.1f,%.1f ", x(j, len(points)), at(c.of(p)))
		}
		b.WriteString(`"/>` + "\n")
		for j, p := range points {
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(j, len(points)), at(c.of(p)), c.color)
			label := at(c.of(p)) - 8
			if c.below {
				label += 24
			}
			if !c.dashed {
				fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="%s">%s</text>`+"\n", x(j, len(points)), label, c.color, short(c.of(p)))
			}
		}
	}
}

// short formats a number with about three digits.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 3, 64) + " M"
	case v >= 1e4:
		return strconv.FormatFloat(math.Round(v/1e3), 'f', -1, 64) + ",000"
	case v >= 100:
		return strconv.FormatFloat(math.Round(v), 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// grouped formats a number with commas between thousands.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
