package group_test

import (
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

// soon returns a context that ends a test that would hang.
var soon = testkit.Soon
