package testkit

import (
	"sync"
	"testing"

	"github.com/cantuslog/cantus/internal/invariant"
)

// expected counts, for each statement, the running tests that make it false.
var expected struct {
	sync.Mutex
	by map[*invariant.Invariant]int
}

// A violated statement ends the tests, at the place where it was checked.
func init() {
	expected.by = map[*invariant.Invariant]int{}
	invariant.OnViolation(func(v invariant.ViolationError) {
		expected.Lock()
		defer expected.Unlock()
		if expected.by[v.Invariant] == 0 {
			panic(v)
		}
	})
}

// Violates says that a test makes statements of package invariant false, as the
// statement's own test or because it damages a replica. The test fails unless
// each of them was false at least once, or, of an event, unless it occurred.
func Violates(t testing.TB, all ...*invariant.Invariant) {
	t.Helper()
	for _, i := range all {
		before := i.Count()
		MayViolate(t, i)
		t.Cleanup(func() {
			if i.Count() == before {
				t.Errorf("%s was not noticed", i.Name())
			}
		})
	}
}

// MayViolate says that a test may make statements false.
func MayViolate(t testing.TB, all ...*invariant.Invariant) {
	expected.Lock()
	defer expected.Unlock()
	for _, i := range all {
		expected.by[i]++
		t.Cleanup(func() {
			expected.Lock()
			defer expected.Unlock()
			expected.by[i]--
		})
	}
}
