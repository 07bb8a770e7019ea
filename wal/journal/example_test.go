package journal_test

import (
	"fmt"
	"log"
	"os"

	"github.com/cantuslog/cantus/wal/journal"
)

func Example() {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	show := func(seq uint64, ops []journal.Op) error {
		for _, op := range ops {
			fmt.Printf("frame %d: %s=%s\n", seq, op.Key, op.Value)
		}
		return nil
	}
	j, err := journal.Open(dir, journal.Options{SegmentSize: 1 << 20}, show)
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{"ut", "re", "mi"} {
		if err := j.Commit([]journal.Op{{Key: []byte("note"), Value: []byte(name)}}); err != nil {
			log.Fatal(err)
		}
	}
	if err := j.Release(1); err != nil { // frame 1 is held elsewhere
		log.Fatal(err)
	}
	if err := j.Close(); err != nil {
		log.Fatal(err)
	}

	j, err = journal.Open(dir, journal.Options{SegmentSize: 1 << 20}, show)
	if err != nil {
		log.Fatal(err)
	}
	defer j.Close()
	fmt.Println("last frame:", j.Seq())
	// Output:
	// frame 2: note=re
	// frame 3: note=mi
	// last frame: 3
}
