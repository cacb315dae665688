import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/** Writes and forces a file some times, and prints how many milliseconds each time took. */
public class Force {
    public static void main(String[] args) throws Exception {
        Path file = Path.of(args[0], "forced");
        boolean metadata = false;
        try (FileChannel channel =
                FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
            for (int i = 0; i < Integer.parseInt(args[1]); i++) {
                channel.write(ByteBuffer.wrap(("record " + i + "\n").getBytes()));
                long began = System.nanoTime();
                channel.force(metadata);
                System.out.println((System.nanoTime() - began) / 1_000_000);
                metadata = !metadata;
            }
        }
    }
}
