//go:build stores

package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/testkit"
)

// TestStores checks buckets of real servers, whose conditional writes decide
// between two processes.
func TestStores(t *testing.T) {
	for _, store := range testkit.Stores {
		t.Run(store.Name, func(t *testing.T) {
			s := testkit.StartStore(t, store.Name)
			defer checkQuiet(t)()
			open := func(prefix string) Bucket {
				b, err := openCloud(t.Context(), s.URL(prefix))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := b.Close(); err != nil {
						t.Error(err)
					}
				})
				return b
			}
			CheckBucket(t, open("prefix"))
			checkManyObjects(t, open("many"))
			checkLargeObject(t, open("large"))
		})
	}
}

// checkQuiet returns a function that checks that no library has written to
// standard error since.
func checkQuiet(t *testing.T) func() {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stderr")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	was := os.Stderr
	os.Stderr = file
	return func() {
		os.Stderr = was
		if text, err := os.ReadFile(path); err != nil || len(text) > 0 || file.Close() != nil {
			t.Errorf("on standard error: %s%v", text, err)
		}
	}
}

// checkManyObjects checks a list of more objects than a store returns at once.
func checkManyObjects(t *testing.T, b Bucket) {
	t.Helper()
	const many = 1100
	var puts errgroup.Group
	puts.SetLimit(8)
	for i := range many {
		puts.Go(func() error { return b.Put(t.Context(), fmt.Sprintf("p0/%04d", i), []byte("x"), i%2 == 0) })
	}
	if err := puts.Wait(); err != nil {
		t.Fatal(err)
	}
	all, err := b.List(t.Context(), "p0/")
	if err != nil || len(all) != many {
		t.Fatalf("%d objects, want %d: %v", len(all), many, err)
	}
	for i, o := range all {
		if o.Name != fmt.Sprintf("p0/%04d", i) {
			t.Fatalf("object %d is %q", i, o.Name)
		}
	}
}

// checkLargeObject checks that of several that put one new object at once, one
// succeeds, if the object is so large that each store gets it in parts.
func checkLargeObject(t *testing.T, b Bucket) {
	t.Helper()
	const size = 20 << 20
	for round := range 3 {
		name := fmt.Sprintf("manifest/%d", round)
		var won atomic.Int32
		var all sync.WaitGroup
		for i := range byte(3) {
			all.Go(func() {
				switch err := b.Put(t.Context(), name, bytes.Repeat([]byte{'a' + i}, size), true); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, fs.ErrExist):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		all.Wait()
		got, err := b.Get(t.Context(), name, size)
		if won.Load() != 1 || err != nil || len(got) != size || bytes.Count(got, got[:1]) != size {
			t.Errorf("round %d: %d have won, %d bytes, %v", round, won.Load(), len(got), err)
		}
	}
}
