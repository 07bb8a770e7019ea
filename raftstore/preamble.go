package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// wireVersion is the version of the preamble and of what follows it.
const wireVersion = 1

// What a connection is for.
const (
	kindRaft  = 1
	kindFetch = 2
)

// maxPreamble bounds a preamble's body: three names and a few bytes.
const maxPreamble = 1024

var (
	preambleMagic = [4]byte{'C', 'T', 'R', 'P'}
	castagnoli    = crc32.MakeTable(crc32.Castagnoli)
)

// errPreamble is returned for what is no preamble of this version.
var errPreamble = errors.New("raftstore: not a preamble")

// preamble is what the dialing side of a connection says first.
type preamble struct {
	kind     uint8
	group    uint32
	cluster  string
	from, to string
}

func (p preamble) encode() []byte {
	body := []byte{p.kind}
	body = binary.BigEndian.AppendUint32(body, p.group)
	for _, s := range []string{p.cluster, p.from, p.to} {
		body = append(body, byte(len(s)))
		body = append(body, s...)
	}
	b := append(preambleMagic[:len(preambleMagic):len(preambleMagic)], wireVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, body...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// readPreamble reads no more than the preamble has. The error wraps
// errPreamble if that is not what came, and tells what did.
func readPreamble(r io.Reader) (p preamble, err error) {
	var head [7]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return p, err
	}
	if !bytes.Equal(head[:4], preambleMagic[:]) {
		return p, fmt.Errorf("%w: it begins with %q", errPreamble, head[:4])
	}
	if head[4] != wireVersion {
		return p, fmt.Errorf("%w: replication protocol %d is not known, %d is", errPreamble, head[4], wireVersion)
	}
	n := int(binary.BigEndian.Uint16(head[5:]))
	if n > maxPreamble {
		return p, fmt.Errorf("%w: %d bytes are too many", errPreamble, n)
	}
	b := make([]byte, n+4)
	if _, err := io.ReadFull(r, b); err != nil {
		return p, err
	}
	sum := crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, b[:n])
	if binary.BigEndian.Uint32(b[n:]) != sum {
		return p, fmt.Errorf("%w: its checksum is wrong", errPreamble)
	}
	return decodePreamble(b[:n])
}

func decodePreamble(b []byte) (p preamble, err error) {
	if len(b) < 5 {
		return p, fmt.Errorf("%w: %d bytes are too few", errPreamble, len(b))
	}
	p.kind, p.group = b[0], binary.BigEndian.Uint32(b[1:])
	b = b[5:]
	for _, s := range []*string{&p.cluster, &p.from, &p.to} {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return p, fmt.Errorf("%w: it ends early", errPreamble)
		}
		*s, b = string(b[1:1+int(b[0])]), b[1+int(b[0]):]
	}
	if len(b) > 0 {
		return p, fmt.Errorf("%w: %d bytes are left over", errPreamble, len(b))
	}
	return p, nil
}

// The answers to a preamble.
const (
	welcome = 0
	refused = 1
)

// ErrRefused is returned when a peer does not take a connection; its text
// says why.
var ErrRefused = errors.New("raftstore: refused by the peer")

func writeAnswer(w io.Writer, why string) error {
	if len(why) > 255 {
		why = why[:255]
	}
	status := byte(welcome)
	if why != "" {
		status = refused
	}
	_, err := w.Write(append([]byte{status, byte(len(why))}, why...))
	return err
}

func readAnswer(r io.Reader) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	why := make([]byte, head[1])
	if _, err := io.ReadFull(r, why); err != nil {
		return err
	}
	if head[0] != welcome {
		return fmt.Errorf("%w: %q", ErrRefused, why)
	}
	return nil
}
