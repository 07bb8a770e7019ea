//go:build !race

package sim

// Race reports whether the race detector is on.
const Race = false
