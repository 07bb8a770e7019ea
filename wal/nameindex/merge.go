package nameindex

import (
	"fmt"
	"slices"
)

// writeTail writes sorted entries as a run.
func writeTail(path string, s run, entries []uint64) (*run, error) {
	w, err := newWriter(path, s, uint64(len(entries)))
	if err != nil {
		return nil, err
	}
	var list []uint32
	for len(entries) > 0 {
		k := entries[0] &^ offsetMask
		n := 1
		for n < len(entries) && entries[n]&^offsetMask == k {
			n++
		}
		list = list[:0]
		for _, e := range entries[:n] {
			if o := uint32(e & offsetMask); len(list) == 0 || list[len(list)-1] != o {
				list = append(list, o)
			}
		}
		w.add(Key(k), list)
		entries = entries[n:]
	}
	return w.finish()
}

// merge writes runs that follow each other as one.
func merge(path string, parts []*run) (*run, error) {
	s := *parts[0]
	s.last, s.stamp = parts[len(parts)-1].last, parts[len(parts)-1].stamp
	entries := uint64(0)
	cursors := make([]*cursor, len(parts))
	for i, p := range parts {
		opened, err := p.open()
		if err != nil {
			return nil, err
		}
		defer opened.file.Close()
		entries += p.entries
		cursors[i] = &cursor{from: opened, shift: uint32(p.first - s.first)}
		if err := cursors[i].next(); err != nil {
			return nil, err
		}
	}
	s.entries = 0
	w, err := newWriter(path, s, entries)
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
	cursors = slices.DeleteFunc(cursors, func(c *cursor) bool { return c.done })
	var all []uint32
	for len(cursors) > 0 {
		k := cursors[0].key
		for _, c := range cursors[1:] {
			k = min(k, c.key)
		}
		all = all[:0]
		ended := false
		for _, c := range cursors {
			if c.key != k {
				continue
			}
			list, err := c.from.list(c.group)
			if err != nil {
				return err
			}
			for _, o := range list {
				all = append(all, o+c.shift)
			}
			if err := c.next(); err != nil {
				return err
			}
			ended = ended || c.done
		}
		w.add(k, all)
		if ended {
			cursors = slices.DeleteFunc(cursors, func(c *cursor) bool { return c.done })
		}
	}
	return nil
}

// cursor goes through the groups of a run in the order of their keys.
type cursor struct {
	from   openedRun
	shift  uint32 // of its first transaction from that of the merged run
	key    Key
	group  group
	done   bool
	bucket uint32 // the next one
	groups []group
}

func (c *cursor) next() error {
	for len(c.groups) == 0 {
		if c.bucket == 1<<c.from.bits {
			c.done = true
			return nil
		}
		read, err := c.from.bucket(c.bucket)
		if err != nil {
			return err
		}
		c.groups = slices.AppendSeq(c.groups, read.all())
		if read.err != nil {
			return c.from.damaged(fmt.Sprintf("bucket %d", c.bucket), read.err)
		}
		c.bucket++
	}
	c.group, c.groups = c.groups[0], c.groups[1:]
	c.key = c.from.join(c.bucket-1, c.group.rest)
	return nil
}

// verify reads a whole run.
func (s *run) verify() error {
	opened, err := s.open()
	if err != nil {
		return err
	}
	defer opened.file.Close()
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
