package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
)

const (
	frameHeader = 8
	// maxFrame bounds a frame's payload, and so what a reader holds of a peer
	// that it does not trust yet.
	maxFrame = 256 << 10
)

// errFrame is returned for bytes that are no frame.
var errFrame = errors.New("raftstore: damaged frame")

// framed carries what is written in frames with a checksum each, so that what
// a peer or the network has garbled is not taken for anything else. One
// goroutine reads and one writes at a time.
type framed struct {
	net.Conn
	out  []byte
	in   []byte // a frame, or what is left of it
	full []byte // in's buffer
}

// Write sends p in one frame, or several.
func (f *framed) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+maxFrame)]
		f.out = binary.BigEndian.AppendUint32(f.out[:0], uint32(len(part)))
		f.out = binary.BigEndian.AppendUint32(f.out, crc32.Checksum(part, castagnoli))
		f.out = append(f.out, part...)
		if _, err := f.Conn.Write(f.out); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// Read gives bytes of a frame whose checksum was right.
func (f *framed) Read(p []byte) (int, error) {
	for len(f.in) == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.in)
	f.in = f.in[n:]
	return n, nil
}

func (f *framed) next() error {
	var head [frameHeader]byte
	if _, err := io.ReadFull(f.Conn, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return fmt.Errorf("%w: of %d bytes, %d are allowed", errFrame, n, maxFrame)
	}
	if cap(f.full) < int(n) {
		f.full = make([]byte, n, max(int(n), min(2*cap(f.full), maxFrame)))
	}
	f.in = f.full[:n]
	if _, err := io.ReadFull(f.Conn, f.in); err != nil {
		f.in = nil
		return err
	}
	if crc32.Checksum(f.in, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
		f.in = nil
		return fmt.Errorf("%w: its checksum is wrong", errFrame)
	}
	return nil
}
