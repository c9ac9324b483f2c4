package storetest_test

import (
	"testing"

	"github.com/shoal-project/shoal/peer/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Opened {
		const size, length = 1<<20 + 12345, 64 << 10
		return storetest.Opened{Storage: storetest.NewMemory(size, length), Size: size, PieceLength: length}
	})
}
