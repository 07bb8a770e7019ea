package nameindex

import (
	"fmt"
	"math"
	"slices"
)

// writeTail writes as a run what is in memory: entries and common lists, both
// by their keys.
func writeTail(path string, s run, entries []uint64, common []commonList, places []uint64) (*run, error) {
	size := len(entries)
	for _, l := range common {
		size += len(l.offsets)
	}
	w, err := newWriter(path, s, places, uint64(size))
	if err != nil {
		return nil, err
	}
	var all []uint32
	for len(entries) > 0 || len(common) > 0 {
		k := Key(math.MaxUint64)
		if len(entries) > 0 {
			k = Key(entries[0] &^ offsetMask)
		}
		if len(common) > 0 {
			k = min(k, common[0].key)
		}
		n := 0
		for n < len(entries) && Key(entries[n]&^offsetMask) == k {
			n++
		}
		all = appendOffsets(all[:0], entries[:n])
		entries = entries[n:]
		if len(common) > 0 && common[0].key == k {
			all, common = appendNewer(all, common[0].offsets), common[1:]
		}
		w.add(k, all)
	}
	return w.finish()
}

// merge writes runs that follow each other as one.
func merge(path string, parts []*run) (*run, error) {
	s := *parts[0]
	s.last, s.stamp = parts[len(parts)-1].last, parts[len(parts)-1].stamp
	entries, places := uint64(0), []uint64(nil)
	cursors := make([]*cursor, len(parts))
	for i, p := range parts {
		opened, file, err := p.openWhole()
		if err != nil {
			return nil, err
		}
		defer file.Close()
		entries += p.entries
		if places, err = opened.appendPlaces(places); err != nil {
			return nil, err
		}
		cursors[i] = &cursor{from: opened, shift: uint32(p.first - s.first)}
		if err := cursors[i].next(); err != nil {
			return nil, err
		}
	}
	s.entries = 0
	w, err := newWriter(path, s, places, entries)
	if err != nil {
		return nil, err
	}
	err = mergeInto(w, cursors)
	if w.err == nil {
		w.err = err
	}
	return w.finish()
}

func mergeInto(w *writer, cursors []*cursor) error {
	h := cursorHeap(slices.DeleteFunc(cursors, func(c *cursor) bool { return c.done }))
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
	var all []uint32
	for len(h) > 0 {
		k := h[0].key
		all = all[:0]
		for len(h) > 0 && h[0].key == k {
			c := h[0]
			var err error
			first := len(all)
			if all, err = c.from.appendList(all, c.group); err != nil {
				return err
			}
			for i := first; i < len(all); i++ {
				all[i] += c.shift
			}
			if err := c.next(); err != nil {
				return err
			}
			if c.done {
				h[0] = h[len(h)-1]
				h = h[:len(h)-1]
			}
			h.down(0)
		}
		w.add(k, all)
	}
	return nil
}

// cursorHeap is a binary heap: the cursor with the least key is the first, and
// of those with one key the one of the oldest run.
type cursorHeap []*cursor

func (h cursorHeap) less(i, j int) bool {
	return h[i].key < h[j].key || h[i].key == h[j].key && h[i].shift < h[j].shift
}

// down moves the cursor at i to its place.
func (h cursorHeap) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h); child++ {
			if h.less(child, least) {
				least = child
			}
		}
		if least == i {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// cursor goes through the groups of a run in the order of their keys.
type cursor struct {
	from   openedRun
	shift  uint32 // of its first transaction from that of the merged run
	key    Key
	group  group
	done   bool
	bucket uint32 // the next one
	groups groups // what is left of the one before
	rest   uint64 // of the last key
}

func (c *cursor) next() error {
	for len(c.groups.left) == 0 {
		if c.bucket == 1<<c.from.bits {
			c.done = true
			return nil
		}
		read, err := c.from.bucket(c.bucket)
		if err != nil {
			return err
		}
		c.groups, c.rest = *read, 0
		c.bucket++
	}
	c.group = c.groups.next(c.rest)
	if c.groups.err != nil {
		return c.from.damaged(fmt.Sprintf("bucket %d", c.bucket-1), c.groups.err)
	}
	c.rest = c.group.rest
	c.key = c.from.join(c.bucket-1, c.rest)
	return nil
}

// verify reads a whole run.
func (s *run) verify() error {
	opened, file, err := s.openWhole()
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := opened.appendPlaces(nil); err != nil {
		return err
	}
	c := cursor{from: opened}
	last, entries := Key(0), uint64(0)
	for {
		if err := c.next(); err != nil || c.done {
			if err == nil && entries != s.entries {
				err = s.damaged("whole", fmt.Errorf("%d entries, and not %d", entries, s.entries))
			}
			return err
		}
		if c.key <= last && last != 0 {
			return s.damaged("whole", fmt.Errorf("keys are out of order"))
		}
		last = c.key
		if _, err := opened.list(c.group); err != nil {
			return err
		}
		entries += uint64(c.group.count)
	}
}
