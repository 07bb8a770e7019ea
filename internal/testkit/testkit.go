// Package testkit holds helpers that the tests of several packages share:
// waiting, the tiers of tests, and the check for leaked goroutines.
//
// Tests come in three tiers. go test -short skips or shortens the longest
// tests; it is for quick runs between edits. go test runs all tests, but some
// only as samples. With CANTUS_LONG=1 in the environment, they run at full
// length.
package testkit

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Patience is how long a test waits for an event that must happen. It only ends
// tests that would hang: no other outcome depends on it.
const Patience = 2 * time.Minute

// Soon returns a context that ends with the test, or after Patience.
func Soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Until polls until a condition holds. It fails the test after Patience. what
// describes the condition.
func Until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out after %v waiting: %s", Patience, what)
		}
	}
}

// long is the environment variable that selects the longest tier.
const long = "CANTUS_LONG"

// Long reports whether tests run at full length. It panics if CANTUS_LONG is
// not a boolean.
func Long() bool {
	v := os.Getenv(long)
	if v == "" {
		return false
	}
	set, err := strconv.ParseBool(v)
	if err != nil {
		panic(fmt.Sprintf("%s is %q: set it to 1, or not at all", long, v))
	}
	return set
}

// OnlyLong skips a test unless tests run at full length. reason says why the
// test is long.
func OnlyLong(t testing.TB, reason string) {
	t.Helper()
	if !Long() {
		t.Skipf("left out without %s=1: %s", long, reason)
	}
}

// NotShort skips a test in short mode. reason says why the test is long.
func NotShort(t testing.TB, reason string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("left out in short mode: %s", reason)
	}
}

// Parallel marks a test as parallel, unless tests run at full length, when the
// test's measurements must not be disturbed. It is for tests that wait more
// than they compute.
func Parallel(t *testing.T) {
	t.Helper()
	if !Long() {
		t.Parallel()
	}
}

// Sized returns the size of a test in the current tier: short in short mode,
// full at full length, otherwise usual.
func Sized[T any](short, usual, full T) T {
	switch {
	case Long():
		return full
	case testing.Short():
		return short
	}
	return usual
}

// AtOnce sets the number of tests that run in parallel, unless the command line
// sets it. Tests that wait more than they compute can be more than there are
// processors. It is called from TestMain, before the tests run.
func AtOnce(n int) error {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if set {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(n))
}

// Main runs a package's tests, and fails if goroutines are left afterwards,
// other than that of Badger's logger, which never ends. It is called from
// TestMain.
func Main(m goleak.TestingM) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}
