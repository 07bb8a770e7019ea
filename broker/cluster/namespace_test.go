package cluster

import (
	"errors"
	"strings"
	"testing"
)

// A namespace has its partitions for good, and no partition is in two.
func TestNamespaces(t *testing.T) {
	f := Bootstrap(map[string]string{"n1": "1"}, 4, 1)
	apply := func(c Command, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(want string, _ Command, err error) {
		t.Helper()
		if !errors.Is(err, ErrCommand) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	command := func(name string, partitions []int, l Limits) (string, Command, error) {
		c, err := f.SetNamespace(name, partitions, l)
		return "", c, err
	}
	try := func(want, name string, partitions ...int) {
		t.Helper()
		_, c, err := command(name, partitions, Limits{})
		refused(want, c, err)
	}
	try("name its partitions", "orders")
	try("no partition 4", "orders", 2, 4)
	try("partition 2 twice", "orders", 2, 2)
	before := f.Clone()
	apply(f.SetNamespace("orders", []int{3, 2}, Limits{}))
	if len(before.Namespaces) != 0 {
		t.Error("a copy of the facts has changed")
	}
	try("belongs to the namespace orders", "billing", 1, 2)
	try("has the partitions [3 2]", "orders", 2, 3)
	apply(f.SetNamespace("orders", nil, Limits{Transactions: 5}))
	apply(f.SetNamespace("billing", []int{0}, Limits{Kept: 1}))
	for p, want := range []Part{{"billing", 0, 1}, {}, {"orders", 1, 2}, {"orders", 0, 2}} {
		if got, _ := f.PartOf(p); got != want {
			t.Errorf("partition %d is at %+v, want %+v", p, got, want)
		}
	}
	if _, limits := f.PartOf(2); limits != (Limits{Transactions: 5}) {
		t.Errorf("%+v", limits)
	}
	c, err := f.RemoveNamespace("shipping")
	refused("no namespace shipping", c, err)
	apply(f.RemoveNamespace("orders"))
	if got, _ := f.PartOf(2); got != (Part{}) {
		t.Errorf("%+v", got)
	}
	// What arrives is checked again.
	for _, n := range []Namespace{{}, {Partitions: []int{0}}, {Partitions: []int{-1}}} {
		if err := f.Apply(Command{Kind: SetNamespace, Version: f.Version, Name: "x", Namespace: &n}); !errors.Is(err, ErrCommand) {
			t.Errorf("%+v: %v", n, err)
		}
	}
}
