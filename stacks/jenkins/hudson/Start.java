/** Starts Hudson on a Java that is not Sun's: its XStream asks for the vendor's name. */
public class Start {
  public static void main(String[] arguments) throws Exception {
    System.setProperty("java.vm.vendor", "Sun Microsystems Inc.");
    Class.forName("Main").getMethod("main", String[].class).invoke(null, (Object) arguments);
  }
}
