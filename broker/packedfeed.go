package broker

import (
	"crypto/ed25519"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// signedPacker packs transactions into messages of the packed feed. Several
// messages share a signature, which costs as much as the encoding of some
// hundred transactions.
type signedPacker struct {
	subject   string
	partition int
	key       ed25519.PrivateKey
	most      int // bytes in a message, unless one transaction alone has more

	pack   []byte // the messages; the last one may grow
	ends   []int  // where each complete message ends
	header []byte // reused
}

// add adds t to the last message. If that would become too large, t begins the
// next one.
func (k *signedPacker) add(e *encoder, t *wal.Transaction) {
	start, before := 0, len(k.pack)
	if n := len(k.ends); n > 0 {
		start = k.ends[n-1]
	}
	k.pack = e.appendPacked(k.pack, t, true)
	if before > start && len(k.pack)-start > k.most {
		k.ends = append(k.ends, before)
	}
}

// full reports whether as many messages are complete as share a signature.
func (k *signedPacker) full() bool { return len(k.ends) == subjects.FeedGroup }

// sign signs the complete messages and appends them to dst.
func (k *signedPacker) sign(dst []byte) []byte {
	start := 0
	hashes := make([]byte, 0, subjects.FeedGroup*feedHashBytes)
	for _, end := range k.ends {
		hashes = subjects.AppendFeedHash(hashes, k.pack[start:end])
		start = end
	}
	h := subjects.AppendBlockStart(k.header[:0])
	h = subjects.AppendField(h, subjects.HeaderHashes, hashes)
	h = subjects.AppendField(h, subjects.HeaderSignature, subjects.SignFeed(k.key, k.partition, string(hashes)))
	k.header = subjects.AppendBlockEnd(h)
	start = 0
	for _, end := range k.ends {
		dst = natslink.AppendHPub(dst, k.subject, k.header, k.pack[start:end])
		start = end
	}
	k.pack, k.ends = k.pack[:copy(k.pack, k.pack[start:])], k.ends[:0]
	return dst
}

// feedHashBytes is the size of a hash in the list, with a space.
const feedHashBytes = 45

// finish completes the last message, signs and appends all messages to dst.
func (k *signedPacker) finish(dst []byte) []byte {
	if len(k.pack) == 0 {
		return dst
	}
	k.ends = append(k.ends, len(k.pack))
	dst = k.sign(dst)
	if cap(k.pack) > 4*subjects.FeedGroup*k.most {
		k.pack = nil // it held a large one
	}
	return dst
}
