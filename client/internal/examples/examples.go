// Package examples lets the examples of this module run where there is a node.
// The module itself knows none: that would make a program that imports the
// client require everything that a node needs.
package examples

import (
	"flag"
	"os"
	"testing"
)

// URL is the address of a node with an empty log, for one example. It is empty
// if there is none.
var URL = os.Getenv("CANTUS_EXAMPLES")

// Main runs a package's tests and ends the process. It leaves out the examples
// if they have no node; TestExamples, in cantustest/clienttest of the root
// module, gives a node to each.
func Main(m *testing.M) {
	flag.Parse()
	if URL == "" {
		if err := leaveOut("^Example"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// leaveOut adds a pattern to those of the tests that the command line leaves
// out.
func leaveOut(pattern string) error {
	skip := flag.Lookup("test.skip").Value
	if s := skip.String(); s != "" {
		pattern += "|" + s
	}
	return skip.Set(pattern)
}
