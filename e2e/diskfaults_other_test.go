//go:build !linux

package e2e_test

// giveDisks returns nothing: only Linux has what it takes.
func (*faulty) giveDisks() []func(*faulty) (string, error) { return nil }
